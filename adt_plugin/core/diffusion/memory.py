"""The choice between keeping the graphs of the steps that carry gradient and running these steps again (`--adt_memory`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from adt_plugin.core.config import TurnConfig
from adt_plugin.core.diffusion.gradient_path import Backward
from adt_plugin.core.distributed import world_size
from adt_plugin.core.schedule import count_grad_steps

SHARE_OF_FREE = 0.8
"""The share of free memory that kept graphs may take; the rest is for fragmentation and varying batches (ours)."""


class MemoryProbe(Protocol):
    """Reads a device's memory, in bytes."""

    def allocated(self) -> int:
        """Return what tensors hold now."""

    def free(self) -> int:
        """Return what nobody has used so far: peaks of decoding and of the training loop's own step do not count as free."""


class CudaMemory:
    """Reads a CUDA device's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocated(self) -> int:
        """Return what PyTorch's allocator counts as held."""
        return torch.cuda.memory_allocated(self.device)

    def free(self) -> int:
        """Return what the driver counts as free: the allocator keeps what it once took."""
        return torch.cuda.mem_get_info(self.device)[0]


def probe_of(device: torch.device) -> MemoryProbe | None:
    """Return the device's probe; None where free memory is not known, or where processes would have to agree."""
    return CudaMemory(device) if device.type == "cuda" and world_size() == 1 else None


class GraphMemory:
    """Decides for every shape of latents whether graphs are kept. Either way gives the same gradient, to rounding.

    `auto` replays in the first turn of every shape, measures there what one step's graph takes, and keeps graphs from then on
    if those of all trained steps fit beside everything that has been in memory so far.

    Args:
        config: its `memory` and what decides about K.
        probe: returns the probe of a device, or None.
    """

    def __init__(self, config: TurnConfig, probe: Callable[[torch.device], MemoryProbe | None] = probe_of) -> None:
        self.mode, self.probe = config.memory, probe
        self.most_grad_steps = count_grad_steps(config, config.steps)
        self.fits: dict[torch.Size, bool] = {}

    def keeps_graphs(self, latents: Tensor) -> bool:
        """Return whether the next turn on latents of this shape keeps the graphs of its trained steps."""
        return self.mode == "fast" or self.fits.get(latents.shape, False)

    def keep_none(self) -> None:
        """Replay from now on."""
        self.mode = "low"
        self.fits.clear()

    def measuring(self, backward: Backward, latents: Tensor) -> Backward:
        """Return `backward`, made to decide about this shape when it is first called: a replayed step's graph is whole then."""
        probe = self.probe(latents.device) if self.mode == "auto" and latents.shape not in self.fits else None
        if probe is None:
            return backward
        before = probe.allocated()

        def measured(loss: Tensor) -> None:
            if latents.shape not in self.fits:
                needed = (probe.allocated() - before) * self.most_grad_steps
                self.fits[latents.shape] = needed <= SHARE_OF_FREE * probe.free()
            backward(loss)

        return measured
