"""How like the generated windows are to the real ones, from features that a turn has anyway: numbers to watch, not to train on.

A window is what the discriminator saw of an image: its crop, augmented. The features of a pair are of one augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adt_plugin.core.discriminator.discriminator import Features
from adt_plugin.core.discriminator.heads import Standardize

WINDOWS = 128
"""As many pairs of windows make the two sets that are compared (ours)."""

FEWEST = 32
"""With fewer pairs than this the sets say nothing (ours)."""


def pooled(features: Features, standardizers: Sequence[Standardize]) -> Tensor:
    """Return one vector `(B, sum C_i)` per image: each block's standardised features, averaged over positions, side by side.

    Args:
        features: one `(B, C_i, h_i, w_i)` per block; the result has no graph.
    """
    blocks = zip(features, standardizers, strict=True)
    return torch.cat([standardize(block.detach()).mean((2, 3)) for block, standardize in blocks], 1)


def feature_distance(gen: Tensor, real: Tensor) -> Tensor:
    """Return the mean over pairs of the root mean square difference of their vectors `(B, C)`, 0-dim.

    Its unit is the deviation of a channel between the patches of real images.
    """
    return (gen - real).square().mean(1).sqrt().mean()


class WindowSets:
    """The vectors of the last windows, generated and real, on the CPU, and how the two sets compare.

    Args:
        windows: pairs that are kept; the oldest are forgotten.
        fewest: pairs below which `kid` and `spread` are NaN.
    """

    def __init__(self, windows: int = WINDOWS, fewest: int = FEWEST) -> None:
        self.windows, self.fewest, self.seen = windows, fewest, 0
        self.gen, self.real = torch.zeros(windows, 0), torch.zeros(windows, 0)
        self.terms = torch.zeros(windows, windows)

    def __len__(self) -> int:
        return min(self.seen, self.windows)

    def add(self, gen: Tensor, real: Tensor) -> None:
        """Take in vectors `(B, C)` of pairs, on any device."""
        gen, real = (vectors[-self.windows :].detach().float().cpu() for vectors in (gen, real))
        if not self.seen:
            self.gen, self.real = (torch.zeros(self.windows, gen.shape[1]) for _ in range(2))
        places = (self.seen + torch.arange(len(gen))) % self.windows
        self.gen[places], self.real[places] = gen, real
        self.seen += len(gen)
        self._compare(places)

    def _compare(self, places: Tensor) -> None:
        """Update the terms of the estimate that new pairs are part of; those between old pairs stay."""
        kept, x, y = len(self), self.gen[places], self.real[places]
        gen, real = self.gen[:kept], self.real[:kept]
        terms = kernel(x, gen) + kernel(y, real) - kernel(x, real) - kernel(y, gen)
        self.terms[places, :kept] = terms
        self.terms[:kept, places] = terms.T

    @property
    def kid(self) -> float:
        """Kernel distance of the two sets (KID, arXiv 1801.01401), about 0 for equal distributions; NaN for few pairs.

        The unbiased estimate for pairs (Gretton et al. 2012, Lemma 6): no term compares an image with itself or its partner.
        """
        kept = len(self)
        if kept < self.fewest:
            return float("nan")
        terms = self.terms[:kept, :kept].double()
        return float((terms.sum() - terms.trace()) / (kept * (kept - 1)))

    @property
    def spread(self) -> float:
        """Variance among the generated windows over that among the real ones; NaN for few pairs or equal real windows."""
        kept = len(self)
        if kept < self.fewest:
            return float("nan")
        gen, real = (float(vectors[:kept].var(0).sum()) for vectors in (self.gen, self.real))
        return gen / real if real > 0 else float("nan")


def kernel(first: Tensor, second: Tensor) -> Tensor:
    """Return KID's polynomial kernel `(x . y / C + 1)^3` of vectors `(A, C)` and `(B, C)`, as `(A, B)`."""
    values: Tensor = (first @ second.T / first.shape[1] + 1) ** 3
    return values
