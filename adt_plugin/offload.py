"""Modules that only a part of a turn needs, on the CPU the rest of the time (`--adt_offload`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class Offload:
    """Keeps modules away from the device between the blocks that need them.

    Args:
        modules: frozen, moved as a whole.
        enabled: False leaves them where they are.
    """

    def __init__(self, modules: Sequence[nn.Module], enabled: bool) -> None:
        self.modules = list(modules) if enabled else []

    @contextmanager
    def resident(self, device: torch.device) -> Iterator[None]:
        """The modules lie on this device inside, and on the CPU afterwards, also after an error."""
        try:
            for module in self.modules:
                module.to(device)
            yield
        finally:
            for module in self.modules:
                module.to("cpu")
