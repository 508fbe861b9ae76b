"""The largest batch that the host's data will bring, which is known before the first one has come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.out_of_memory import TurnOutOfMemoryError
from adt_plugin.host.batch import Predicted
from adt_plugin.host.calls import resized

logger = logging.getLogger(__name__)

Size = tuple[int, int, int]
"""Images, and their height and width in pixels."""


def batch_sizes(dataset: Any) -> Iterator[Size]:
    """Yield the largest batch of every bucket that has images, as the host's group of data sets holds them.

    Raises:
        AttributeError, TypeError, ValueError: the data is arranged in another way, as that of `--dataset_class`.
    """
    for part in getattr(dataset, "datasets", [dataset]):
        manager = part.bucket_manager
        for (width, height), keys in zip(manager.resos, manager.buckets, strict=False):
            if keys:
                yield min(part.batch_size, len(keys)), int(height), int(width)


def largest_batch(dataset: Any, seen: Size) -> Size | None:
    """Return the batch with the most pixels.

    Args:
        seen: a batch that the data has brought.

    Returns:
        None where the data is arranged in a way that is not known, or could not have brought that batch.
    """
    try:
        sizes = list(batch_sizes(dataset))
    except (AttributeError, TypeError, ValueError):
        return None
    if seen[1:] not in [size[1:] for size in sizes]:
        return None
    return max(sizes, key=lambda size: size[0] * size[1] * size[2])


def is_compiled(network: nn.Module) -> bool:
    """Return whether a module is compiled, or one in it: another size would be compiled, too, and change later results."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in network.modules())


def rows(tensor: Tensor, count: int) -> Tensor:
    """Return so many of a tensor's rows, from the first on and again from the first."""
    return tensor[torch.arange(count, device=tensor.device) % len(tensor)]


def grown(batch: Predicted, count: int, height: int, width: int) -> Predicted | None:
    """Return a batch of this size, made of another one's images and prompts; None where its call has a part that cannot grow.

    Args:
        count: of its images.
        height, width: of its latents.
    """
    latents = batch.noised.latents
    larger = resized(rows(latents, count), height, width)
    call = batch.call.grown(latents, larger, lambda tensor: rows(tensor, count))
    if call is None:
        return None
    mask, weights = (None if part is None else rows(part, count) for part in (batch.mask, batch.weights))
    return replace(batch, noised=replace(batch.noised, latents=larger), call=call, mask=mask, weights=weights)


@dataclass
class Largest:
    """Makes a run's largest batch of one that has come, so that a turn on it can be rehearsed.

    Attributes:
        dataset: the host's; None if it is not known.
        pixels: to a latent, along a side.
        possible: whether a batch of another size can be made at all.
    """

    dataset: Any
    pixels: int
    possible: bool = True

    def of(self, batch: Predicted) -> Predicted:
        """Return the run's largest batch, made of this one; this one where it is none, or where none can be made."""
        latents = batch.noised.latents
        count, (height, width) = len(latents), latents.shape[-2:]
        found = largest_batch(self.dataset, (count, height * self.pixels, width * self.pixels)) if self.possible else None
        self.possible = self.possible and found is not None
        if found is None or found[0] * found[1] * found[2] <= count * height * width * self.pixels**2:
            return batch
        larger = grown(batch, found[0], found[1] // self.pixels, found[2] // self.pixels)
        self.possible = larger is not None
        return larger or batch

    def attempt(self, rehearse: Callable[[Predicted], None], batch: Predicted, larger: Predicted) -> None:
        """Rehearse the larger batch; where the denoiser does not take it, the batch itself, now and from now on.

        Raises:
            TurnOutOfMemoryError: as a rehearsal.
        """
        if larger is not batch:
            try:
                rehearse(larger)
                return
            except TurnOutOfMemoryError:
                raise
            except Exception as error:  # whatever a denoiser raises that does not take such latents
                self.possible = False
                logger.info("the largest bucket is rehearsed when it comes: %s", str(error).partition("\n")[0])
        rehearse(batch)
