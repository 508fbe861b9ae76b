"""Whether a turn keeps the graphs of the steps that carry gradient, or runs these steps again (`--adt_memory`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.sampling import Denoiser, parts_of
from adt_plugin.core.distributed import world_size

SHARE_OF_FREE = 0.8
"""Of the free memory, what kept graphs may take; the rest is for fragmentation and for what varies between batches (ours)."""

Backward = Callable[[Tensor], None]


def masked_steps(config: ADTConfig, start: int) -> int:
    """How many steps of a path from this start carry gradient."""
    return start if config.grad_mask == "all" else min(config.grad_steps, start)


class MemoryProbe(Protocol):
    """What a device says of its memory, in bytes."""

    def allocated(self) -> int:
        """Held by tensors now."""

    def free(self) -> int:
        """Never used so far, by anyone: the peaks of decoding and of the host's own step are not counted as free."""


class CudaMemory:
    """The probe of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocated(self) -> int:
        """As PyTorch's allocator counts it."""
        return torch.cuda.memory_allocated(self.device)

    def free(self) -> int:
        """As the driver counts it: the allocator keeps what it once took."""
        return torch.cuda.mem_get_info(self.device)[0]


def probe_of(device: torch.device) -> MemoryProbe | None:
    """The device's probe; None where there is no telling, or where processes would have to agree."""
    return CudaMemory(device) if device.type == "cuda" and world_size() == 1 else None


class GraphMemory:
    """The choice between keeping and replaying. Either gives the same gradient, to rounding.

    `auto` replays in the first turn of every shape of latents, measures there what one step's graph takes, and keeps graphs
    from then on if those of all masked steps fit beside everything that has been in memory so far.
    """

    def __init__(self, config: ADTConfig, probe: Callable[[torch.device], MemoryProbe | None] = probe_of) -> None:
        self.mode, self.probe = config.memory, probe
        self.most_masked = masked_steps(config, config.steps)
        self.fits: dict[torch.Size, bool] = {}

    def keeps_graphs(self, latents: Tensor) -> bool:
        """Whether the next turn on latents of this shape keeps the masked steps' graphs."""
        return self.mode == "fast" or self.fits.get(latents.shape, False)

    def measuring(self, backward: Backward, denoiser: Denoiser, latents: Tensor) -> Backward:
        """`backward`, which also decides about this shape when it is first called: a replayed step's graph is whole then."""
        probe = self.probe(latents.device) if self.mode == "auto" and latents.shape not in self.fits else None
        if probe is None:
            return backward
        before, graphs = probe.allocated(), self.most_masked * len(parts_of(denoiser))

        def measured(loss: Tensor) -> None:
            if latents.shape not in self.fits:
                needed = (probe.allocated() - before) * graphs
                self.fits[latents.shape] = needed <= SHARE_OF_FREE * probe.free()
            backward(loss)

        return measured
