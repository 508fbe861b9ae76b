"""What a perfect model of the training data would come to: training images, scored as if they were samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from adt_plugin.demo.data import CLASSES

TRAINING = "training images"
"""How tables and results call them."""


def floor(labels: Tensor, asked: Tensor, score: Callable[[Tensor], Mapping[str, Any]]) -> dict[str, float]:
    """Return every figure's mean over the draws of training images that have no image in common.

    Args:
        labels: classes of the training images `(N,)`.
        asked: classes that samples are asked for `(M,)`; every draw has as many of each.
        score: is told the indices of a draw `(M,)`, and returns its figures.
    """
    draws = [score(indices) for indices in disjoint_draws(labels, asked)]
    return {figure: statistics.fmean(draw[figure] for draw in draws) for figure in draws[0]}


def disjoint_draws(labels: Tensor, asked: Tensor) -> list[Tensor]:
    """Return indices of as many images of every class as are `asked` for: all the draws that have no image in common."""
    counts = asked.bincount(minlength=CLASSES).tolist()
    of_class = [(labels == digit).nonzero().flatten() for digit in range(CLASSES)]
    draws = min(len(indices) // count for indices, count in zip(of_class, counts, strict=True) if count)
    return [
        torch.cat([indices[k * count : (k + 1) * count] for indices, count in zip(of_class, counts, strict=True)])
        for k in range(draws)
    ]
