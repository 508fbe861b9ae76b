"""The host's own call of its denoiser, repeated with other latents and timesteps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from adt_plugin.host.conventions import Arguments, Convention, Place, only_tensor


@dataclass(frozen=True)
class DenoiserCall:
    """A denoiser with the conditioning of one batch bound.

    Attributes:
        module: the prepared denoiser.
        arguments: of the host's call, by position and keyword.
        convention: how they and the output are to be read.
        autocast: makes the context in which the host calls it.
    """

    module: nn.Module
    arguments: Arguments
    convention: Convention
    autocast: Callable[[], Any]

    @classmethod
    def captured(
        cls,
        module: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        convention: Convention,
        autocast: Callable[[], Any],
    ) -> DenoiserCall:
        """Capture what a forward hook of the denoiser saw.

        The conditioning is detached: with a trained text encoder it carries a graph that the host's backward has freed.
        """
        by_place: dict[Place, Any] = dict(enumerate(args))
        by_place.update(kwargs.items())
        arguments = {
            place: tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, value)
            for place, value in by_place.items()
        }
        return cls(module, arguments, convention, autocast)

    @property
    def latents(self) -> Tensor | None:
        """What the host handed over in the latents' place, as it packed them; None if nothing was there."""
        return self.arguments.get(self.convention.latents)

    def conditioned(self, encoded: Sequence[Any]) -> DenoiserCall:
        """Return the same call with another prompt's conditioning, of batch size 1, in place of the captured one."""
        conditioning = self.convention.conditioning(encoded, self.arguments)
        return replace(self, arguments=self.arguments | {p: self._as_captured(p, v) for p, v in conditioning.items()})

    def _as_captured(self, place: Place, value: Tensor) -> Tensor:
        """Return a tensor with the device, precision and batch size of the captured one in its place."""
        captured = self.arguments[place]
        return value.detach().to(captured).expand(len(captured), *value.shape[1:])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the prediction `(B, C, h, w)` for latents x `(B, C, h, w)` and the scheduler's timesteps t `(B,)`."""
        convention = self.convention
        latents = convention.pack(x).to(self.arguments[convention.latents].dtype)
        fixed = {place: value for place, value in convention.fixed.items() if place in self.arguments}
        own = {convention.latents: latents, convention.timestep: convention.time(t)}
        arguments = self.arguments | own | fixed
        args = [arguments[place] for place in sorted(place for place in arguments if isinstance(place, int))]
        kwargs = {place: value for place, value in arguments.items() if isinstance(place, str)}
        with self.autocast():
            return convention.unpack(only_tensor(self.module(*args, **kwargs)), x)

    def without_checkpointing(self, x: Tensor, t: Tensor) -> Tensor:
        """Call without gradient: in eval mode, since checkpointing, which only works in train mode, would waste time.

        The network inside a DistributedDataParallel is called: the wrapper would broadcast its buffers at every call.
        """
        module = self.module.module if isinstance(self.module, DistributedDataParallel) else self.module
        with evaluating(module):
            return replace(self, module=module)(x, t)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module in eval mode inside, and every submodule back in its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()] if module.training else []
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
