"""Modules that only a part of a turn needs, on the CPU the rest of the time (`--adt_offload`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Offload:
    """Keeps modules away from the device between the blocks that need them.

    Args:
        modules: frozen; their weights lie on the CPU.
        enabled: False leaves them where they are.
    """

    def __init__(self, modules: Sequence[nn.Module], enabled: bool) -> None:
        self.known = list(modules)
        self.modules = list(modules) if enabled else []

    def enable(self) -> None:
        """Send the modules home, and keep them there from now on."""
        self.modules = [module.to("cpu") for module in self.known]

    @contextmanager
    def resident(self, device: torch.device) -> Iterator[None]:
        """Put the modules on this device inside, and back where they were afterwards, also after an error.

        Nothing is copied back: the weights are frozen, so the ones at home are still good.
        """
        at_home: list[Tensor] = []
        known: dict[int, tuple[Tensor, Tensor]] = {}

        def fetched(tensor: Tensor) -> Tensor:
            # A reference of its own to the storage at home: `_apply` writes the copy into the Parameter itself. By identity,
            # since a tied weight comes twice, the second time from the device; the tensor is held, so that its id stays its.
            at_home.append(known.setdefault(id(tensor), (tensor, tensor.detach()))[1])
            return tensor.to(device, non_blocking=True)

        try:
            for module in self.modules:
                module._apply(fetched)
            yield
        finally:
            waiting = iter(at_home)
            for module in self.modules:
                module._apply(lambda tensor: next(waiting, tensor))  # in the order in which they were fetched
