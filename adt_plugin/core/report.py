"""What a turn reports: its numbers, its images, and the seconds of its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adt_plugin.core.distributed import all_reduce_mean
from adt_plugin.core.out_of_memory import OUT_OF_MEMORY, TurnOutOfMemoryError, first_line
from adt_plugin.core.stopwatch import Stopwatch

STAGES = ("unroll", "decode", "observe", "gradient", "replay", "discriminator")


@dataclass
class TurnReport:
    """What happened in a turn; numbers are plain Python floats, and with several processes those of the global batch.

    Attributes:
        turn: counts from 1.
        warmup: the discriminator trained alone.
        start: s in 1..m, the number of steps unrolled.
        cfg_scale: the guidance scale of all its denoiser calls; 1 without guidance.
        grad_positions: positions in the unroll (0 is the first step walked) that carried gradient.
        loss_g, loss_d: losses of the two sides.
        score_real, score_gen: mean scores of positive and negative pairs.
        grad_norm: of the adversarial gradient at the denoiser's output, as applied; 0 when none was.
        grad_norm_raw: the same before balancing; grad_norm_diffusion: moving average of the diffusion loss's.
        distance: between the backbone's features of generated and real windows, mean over pairs (`feature_distance`).
        step_grad_norms: norm of dL_G/do_i for every step walked, before balancing; empty in the warm-up.
        skipped: a gradient of either side was not finite, in any process, and both sides' were dropped in all.
        seconds: wall time per stage, if the configuration asks for it.
        kid, spread: how the last windows of this process compare as sets (`WindowSets`); NaN while they are few.
        gen, real, scores: `(B, 3, H, W)` images, and scores `(B,)` of the generated ones as the generator's loss has them.
        pairs: per-pair scores `(2, B)` of generated and of real images as the discriminator's loss has them, for pictures.
    """

    turn: int
    warmup: bool
    start: int
    cfg_scale: float
    grad_positions: list[int]
    loss_g: float
    loss_d: float
    score_real: float
    score_gen: float
    grad_norm: float
    grad_norm_raw: float
    grad_norm_diffusion: float
    distance: float
    step_grad_norms: list[float]
    skipped: bool
    seconds: dict[str, float]
    gen: Tensor = field(repr=False)
    real: Tensor = field(repr=False)
    scores: Tensor = field(repr=False)
    pairs: Tensor = field(repr=False)
    kid: float = float("nan")
    spread: float = float("nan")


def fetch(
    values: Mapping[str, Tensor], vector: Tensor, carried: Sequence[Tensor]
) -> tuple[dict[str, float], list[float], list[Tensor]]:
    """Average over all processes and fetch from the device, in one transfer, the only one that a turn's report waits for.

    Args:
        values: 0-dim, by name.
        vector: one-dimensional.
        carried: of any shapes and precisions; they come along without being averaged.

    Returns:
        The same values by name and those of the vector, as Python numbers; and the tensors as they were, on the CPU.
    """
    device = vector.device
    averaged = all_reduce_mean(torch.stack([tensor.detach().float().to(device) for tensor in (*values.values(), *vector)]))
    fetched, *rest = on_the_cpu([averaged, *(tensor.detach().to(device) for tensor in carried)])
    numbers = fetched.tolist()
    return dict(zip(values, numbers, strict=False)), numbers[len(values) :], rest


def on_the_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one device on the CPU, each with a memory of its own: their bytes travel together."""
    as_bytes = [tensor.flatten().view(torch.uint8) for tensor in tensors]
    parts = torch.cat(as_bytes).cpu().split([len(part) for part in as_bytes])
    return [part.clone().view(like.dtype).view(like.shape) for part, like in zip(parts, tensors, strict=True)]


class StageClock:
    """Wall time per stage of a turn, on demand: it waits for the device's queued work at every stage's ends.

    Args:
        enabled: False measures nothing and waits for nothing.
        device: where the stages run.
    """

    def __init__(self, enabled: bool, device: torch.device) -> None:
        self.enabled, self.watch = enabled, Stopwatch(device if enabled else None)
        self.seconds: dict[str, float] = {}
        self.begun: list[str] = []

    @contextmanager
    def naming_the_stage(self) -> Iterator[None]:
        """Say in which stage memory ran out, if it does inside.

        Raises:
            TurnOutOfMemoryError: in place of PyTorch's own error.
        """
        try:
            yield
        except OUT_OF_MEMORY as error:
            raise TurnOutOfMemoryError(self.begun[-1], first_line(error), in_gradient="replay" in self.begun) from error

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's wall time to the named stage."""
        self.begun.append(name)
        began = self.watch.now()
        try:
            yield
        finally:
            if self.enabled:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.watch.now() - began
