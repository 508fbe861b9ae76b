"""The host's own call of its denoiser, repeated with other latents and timesteps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

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
        taken: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> DenoiserCall:
        """Capture what a forward hook of the denoiser saw.

        Args:
            taken: what is kept of a tensor. With a trained text encoder the conditioning carries a graph, which a backward
                pass of the host's frees: only turns that come before it may keep the graph (`conventions.same`).
        """
        by_place: dict[Place, Any] = dict(enumerate(args))
        by_place.update(kwargs.items())
        return cls(module, _each_tensor(taken, by_place), convention, autocast)

    def detached(self) -> DenoiserCall:
        """Return the same call with no graph behind its conditioning, to be kept beyond its batch."""
        return replace(self, arguments=_each_tensor(Tensor.detach, self.arguments))

    @property
    def has_graph(self) -> bool:
        """Whether a captured tensor has been computed from something that is trained."""
        return any(tensor.grad_fn is not None for tensor in _tensors(self.arguments))

    @property
    def latents(self) -> Tensor | None:
        """What the host handed over in the latents' place, as it packed them; None if nothing was there."""
        return self.arguments.get(self.convention.latents)

    def grown(self, latents: Tensor, larger: Tensor, rows: Callable[[Tensor], Tensor]) -> DenoiserCall | None:
        """Return the same call for a batch of another size, or None where it has a part that nobody knows to resize.

        Args:
            latents, larger: of both batches, `(B, C, h, w)`.
            rows: makes as many rows of a tensor as the other batch has.
        """
        place = self.convention.latents

        def fitted(tensor: Tensor) -> Tensor:
            tensor = rows(tensor) if tensor.ndim and len(tensor) == len(latents) else tensor
            return resized(tensor, *larger.shape[-2:]) if tensor.ndim > 3 else tensor

        arguments = {name: value for name, value in self.arguments.items() if name != place}
        if any(tensor.ndim > 3 and tensor.shape[-2:] != latents.shape[-2:] for tensor in _tensors(arguments)):
            return None
        arguments = _each_tensor(fitted, arguments) | {place: self.convention.pack(larger).to(self.arguments[place].dtype)}
        return replace(self, arguments=arguments | self.convention.places(arguments, larger))

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
        time = convention.time(t)
        if convention.time_as_given:
            time = time.to(self.arguments[convention.timestep].dtype)
        own = {convention.latents: latents, convention.timestep: time}
        arguments = self.arguments | own | fixed
        args = [arguments[place] for place in sorted(place for place in arguments if isinstance(place, int))]
        kwargs = {place: value for place, value in arguments.items() if isinstance(place, str)}
        with self.autocast():
            return convention.unpack(only_tensor(self.module(*args, **kwargs)), x)

    def unwrapped(self) -> DenoiserCall:
        """Return the same call of the network inside a DistributedDataParallel, if it is in one.

        The wrapper would broadcast its buffers at every call, and count the calls that a backward pass has to follow.
        """
        if isinstance(self.module, DistributedDataParallel):
            inside: nn.Module = self.module.module
            return replace(self, module=inside)
        return self

    def without_checkpointing(self, x: Tensor, t: Tensor) -> Tensor:
        """Call without gradient: in eval mode, since checkpointing, which only works in train mode, would waste time."""
        call = self.unwrapped()
        with evaluating(call.module):
            return call(x, t)


def resized(tensor: Tensor, height: int, width: int) -> Tensor:
    """Return the nearest values of a tensor `(..., h, w)` at another size, in its own type."""
    sides = zip((height, width), tensor.shape[-2:], strict=True)
    down, across = (torch.arange(new, device=tensor.device) * old // new for new, old in sides)
    return tensor[..., down, :][..., across]


def _tensors(arguments: Arguments) -> list[Tensor]:
    """Return all tensors in the arguments."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def _each_tensor(taken: Callable[[Tensor], Tensor], arguments: Arguments) -> Arguments:
    """Return the arguments with what is taken of each tensor in them."""
    each = partial(tree_map, lambda leaf: taken(leaf) if isinstance(leaf, Tensor) else leaf)
    return {place: each(value) for place, value in arguments.items()}


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
