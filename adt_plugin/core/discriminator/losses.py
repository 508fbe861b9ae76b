"""Adversarial losses on pair scores `(B,)`."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def discriminator_hinge(score_real: Tensor, score_gen: Tensor) -> Tensor:
    """L_D = mean relu(1 - D(real pair)) + mean relu(1 + D(gen pair)); 2 at chance, 0 when both margins hold."""
    return F.relu(1 - score_real).mean() + F.relu(1 + score_gen).mean()


def generator_loss(score_gen: Tensor) -> Tensor:
    """L_G = - mean D(gen, real)."""
    return -score_gen.mean()
