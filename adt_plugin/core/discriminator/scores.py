"""How a pair of images becomes a score: trainable heads on frozen features, and what is made of their embeddings.

A new kind of score is an entry in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adt_plugin.core.discriminator.heads import Head
from adt_plugin.core.distributed import all_reduce_mean

SCORE_SCALE = 10.0
"""A cosine lies in [-1, 1], the hinge's margins at -1 and 1: the scale lets a difference of 0.2 fill them (ours)."""

Embedding = list[Tensor]
"""Outputs of the heads, one `(B, D, h_i, w_i)` per block of the backbone."""


class Score(Protocol):
    """Compares embeddings of images. An implementation is a module whose parameters are all that is trained.

    Attributes:
        heads: one per block of the backbone.
    """

    heads: nn.ModuleList

    def compare(self, first: Embedding, second: Embedding) -> Tensor:
        """Return scores `(B,)`: high for a pair that looks real."""

    def calibrate(self, first: Embedding, second: Embedding) -> None:
        """Shift the scores once, on the first real pairs, so that these score about 0."""


class SiameseScore(nn.Module):
    """Cosine similarity of the two images' embeddings at the same position, mean over positions and blocks.

    Averaging the embeddings over the image before the cosine instead lost about a third of the gain on the miniature
    (docs/method.md).

    Args:
        channels: of each block's features.
        width: of the heads.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(c, width, width) for c in channels)
        self.bias = nn.Parameter(torch.zeros(len(channels)))

    def compare(self, first: Embedding, second: Embedding) -> Tensor:
        """Return scores `(B,)` of pairs."""
        return SCORE_SCALE * (self.cosines(first, second) - self.bias.unsqueeze(1)).mean(0)

    @staticmethod
    def cosines(first: Embedding, second: Embedding) -> Tensor:
        """Return the mean cosine of every block and pair, `(blocks, B)` in [-1, 1]."""
        return torch.stack([F.cosine_similarity(a, b, dim=1).mean((1, 2)) for a, b in zip(first, second, strict=True)])

    @torch.no_grad()
    def calibrate(self, first: Embedding, second: Embedding) -> None:
        """Set the bias so that positive pairs score 0: an uncalibrated cosine leaves the hinge at chance (measured)."""
        self.bias.copy_(all_reduce_mean(self.cosines(first, second).mean(1)))


class UnaryScore(nn.Module):
    """The ablation: a score of the first image alone, mean of one-channel maps over positions and blocks."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(c, width, 1) for c in channels)

    @staticmethod
    def compare(first: Embedding, second: Embedding) -> Tensor:
        """Return scores `(B,)`; the second image is not looked at."""
        return torch.stack([a.mean((1, 2, 3)) for a in first]).mean(0)

    def calibrate(self, first: Embedding, second: Embedding) -> None:
        """Do nothing: a unary score starts near 0."""


SCORES: dict[str, Callable[[Sequence[int], int], SiameseScore | UnaryScore]] = {"siamese": SiameseScore, "unary": UnaryScore}
"""By `--adt_disc_type`: made from the features' channels and the heads' width."""
