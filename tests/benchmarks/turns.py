"""Other turns: starts drawn by what the heads tell apart, and paths that are walked on over several turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import Unroll, unroll
from adt_plugin.core.report import TurnReport
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.demo.finetune import STRATEGIES, TURNS
from benchmarks.strategies import StoppedSampler

FORGETS = 0.9
"""Share of what is known of a start that is kept when it is drawn again."""
CHANCE, LEAST = 0.5, 0.05
"""Share of pairs that are told apart by chance, and the weight of a start whose pairs are told apart no better."""
KEPT = 8
"""Paths, each of a batch, that are under way at once."""
STRIDE = 2
"""Steps that such a path is walked on in a turn; all of them are trained."""


class TellingStarts(AdversarialTurn):
    """Draws a start the more often, the better its pairs are told apart."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        low, high = self.starts
        self.told_apart = dict.fromkeys(range(low, high + 1), 1.0)

    def __call__(self, *args: Any, **options: Any) -> TurnReport:
        """Run one turn, and note what its pairs, which no head has been trained on, say of its start."""
        report = super().__call__(*args, **options)
        score_gen, score_real = report.pairs
        share = float((score_real > score_gen).float().mean())
        self.told_apart[report.start] += (1 - FORGETS) * (share - self.told_apart[report.start])
        return report

    def _draw_start(self) -> int:
        weights = torch.tensor([max(LEAST, share - CHANCE) for share in self.told_apart.values()])
        drawn = int(torch.multinomial(weights, 1, generator=self.path_generator))
        return self.starts[0] + drawn


@dataclass
class PathUnderWay:
    """A path that goes on in another turn.

    Attributes:
        clean: the latents that it began from `(B, C, h, w)`.
        labels: of its images `(B,)`.
        latents: where it has come to.
        left: steps to its end.
    """

    clean: Tensor
    labels: Tensor
    latents: Tensor
    left: int


class PausingSampler(StoppedSampler):
    """Notes where the path would have come to, too."""

    reached: Tensor | None = None

    def step(self, output: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the next latents, or those of the image that is predicted at the last point."""
        stepped: Any = self.scheduler.step(output, timestep, latents)
        self.reached = stepped.prev_sample.detach()
        return super().step(output, timestep, latents)


class ContinuedTurn(AdversarialTurn):
    """Walks a kept path on by `STRIDE` steps, which are trained, and judges the image that is predicted there.

    A new path begins while fewer than `KEPT` are under way, and where one has come to its end. The warm-up walks whole ones.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.under_way: list[PathUnderWay] = []
        self.current: PathUnderWay | None = None
        self.unroll = self._unroll_on

    def __call__(self, denoiser: Denoiser, latents: Tensor, **options: Any) -> TurnReport:
        """Run one turn, of the path whose turn it is in place of the batch's; the denoiser is a `UNet` with labels bound."""
        if self.schedule.in_warmup(self.turns):
            return super().__call__(denoiser, latents, **options)
        bound: Any = denoiser
        waiting = self.under_way.pop(0) if len(self.under_way) >= KEPT else None
        self.current = waiting or PathUnderWay(latents, bound.keywords["labels"], latents, 0)
        report = super().__call__(partial(bound.func, labels=self.current.labels), self.current.clean, **options)
        if self.current.left:
            self.under_way.append(self.current)
        self.current = None
        return report

    def _noised(self, clean: Tensor) -> tuple[int, Tensor]:
        """Begin a path, or take one up where it was left; prepare the sampler for the steps that are walked now."""
        path = self.current
        if path is None:
            return super()._noised(clean)
        if path.left == 0:
            path.left, path.latents = super()._noised(clean)
        self.sampler.prepare(self.config.steps, path.left)
        walked, first = min(STRIDE, path.left), len(self.sampler.timesteps) - path.left
        self.sampler.scheduler.timesteps = self.sampler.timesteps[first : first + walked]
        return walked, path.latents

    def _unroll_on(self, denoiser: Denoiser, sampler: Sampler, latents: Tensor, seeds: Sequence[int], *rest: Any) -> Unroll:
        path = self.current
        if path is None:
            return unroll(denoiser, sampler, latents, seeds, *rest)
        path.left -= len(seeds)
        if path.left == 0:
            return unroll(denoiser, sampler, latents, seeds, *rest)
        pausing = PausingSampler(sampler.scheduler)
        walked = unroll(denoiser, pausing, latents, seeds, *rest)
        assert pausing.reached is not None
        path.latents = pausing.reached
        return walked


KINDS: dict[str, type[AdversarialTurn]] = {"telling starts": TellingStarts, "continued paths": ContinuedTurn}
for name, kind in KINDS.items():
    STRATEGIES[name], TURNS[name] = {}, kind
