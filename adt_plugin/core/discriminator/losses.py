"""Adversarial losses on pair scores `(B,)`, by name. A new loss is an entry in `LOSSES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """Both sides of an adversarial game.

    Attributes:
        discriminator: (scores of real pairs, scores of generated pairs) -> L_D, 0-dim.
        generator: scores of generated pairs -> L_G, 0-dim.
        won: L_D at or below which the discriminator tells all pairs apart and has hardly a gradient left.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    won: float

    def is_won(self, loss_d: float) -> bool:
        """Return whether the discriminator tells all pairs apart."""
        return loss_d <= self.won


def hinge_discriminator_loss(score_real: Tensor, score_gen: Tensor) -> Tensor:
    """Return L_D = mean relu(1 - D(real pair)) + mean relu(1 + D(gen pair)) (arXiv 1705.02894)."""
    return F.relu(1 - score_real).mean() + F.relu(1 + score_gen).mean()


def mean_generator_loss(score_gen: Tensor) -> Tensor:
    """Return L_G = - mean D(gen, real)."""
    return -score_gen.mean()


def relativistic_discriminator_loss(score_real: Tensor, score_gen: Tensor) -> Tensor:
    """Return L_D = mean log(1 + exp(D(gen pair) - D(real pair))) (arXiv 1807.00734, 2501.05441).

    Both pairs of a row share their real image, so that only what tells the two first images apart counts.
    """
    return F.softplus(score_gen - score_real).mean()


LOSSES = {
    "relativistic": AdversarialLoss(relativistic_discriminator_loss, mean_generator_loss, won=0.01),
    "hinge": AdversarialLoss(hinge_discriminator_loss, mean_generator_loss, won=0.0),
}
"""By `--adt_disc_loss`. The generator's side is linear in both: its norm is balanced anyway, and far from saturation
the logistic one has the same direction."""
