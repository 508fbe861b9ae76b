"""Evaluation of a denoiser: its samples from pure noise against real images, by two classifiers that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adt_plugin.demo.base import Base
from adt_plugin.demo.data import Digits, Splits
from adt_plugin.demo.diffusion import LEADING, evaluation_noise, sample_on
from adt_plugin.demo.metrics import (
    ImageSet,
    Scores,
    coverage,
    detectability,
    frechet_distance,
    kernel_distance,
    nearest_distance,
)
from adt_plugin.demo.models import Classifier, UNet

SAMPLER_STEPS = (3, 5, 10, 20, 50)
CERTAIN = 0.8
"""Probability of the asked class from which an image counts as well-formed."""
CHUNK = 500

ScoreTable = dict[str, dict[int, Scores]]
"""By a key of `GRIDS`, then by the number of its steps."""


@dataclass(frozen=True)
class Evaluator:
    """The fixed part of an evaluation: every run is scored on the same noise against the same images.

    Attributes:
        base: its classifiers judge.
        reference: the real images.
        real: what the metrics need of them.
        train: pixels `(N, 784)` of the training images.
        spacing: their mean distance to the nearest training image.
        noise, labels: what sampling starts from, `(M, 4, 14, 14)` and `(M,)`.
        detect: sampler steps at which detectability is measured, which takes some seconds.
    """

    base: Base
    reference: Digits
    real: ImageSet
    train: Tensor
    spacing: float
    noise: Tensor
    labels: Tensor
    detect: tuple[int, ...] = ()

    def evaluate(self, unet: UNet, grids: Sequence[str] = (LEADING,), steps: Sequence[int] = SAMPLER_STEPS) -> ScoreTable:
        """Return the scores of a denoiser by grid and number of steps."""
        return {
            grid: {
                count: self.score(sample_on(grid, unet, self.noise, self.labels, count), self.labels, count in self.detect)
                for count in steps
            }
            for grid in grids
        }

    @torch.no_grad()
    def well_formed(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return for images `(N, 1, 28, 28)` whether each is surely of its class `(N,)`."""
        chances = torch.cat([self.base.judge(chunk) for chunk in images.split(CHUNK)]).softmax(1)
        return chances[torch.arange(len(images)), labels] >= CERTAIN

    def score(self, images: Tensor, labels: Tensor, detect: bool = False) -> Scores:
        """Return all figures of images `(N, 1, 28, 28)` that were asked to be of the classes `(N,)`."""
        gen = image_set(self.base.classifier, images)
        precision, recall = coverage(self.real.features, gen.features)
        return Scores(
            fd=frechet_distance(self.real.features, gen.features),
            kid=kernel_distance(self.real.features, gen.features),
            pixel_fd=frechet_distance(self.real.pixels, gen.pixels),
            precision=precision,
            recall=recall,
            well_formed=self.well_formed(images, labels).float().mean().item(),
            novelty=nearest_distance(gen.pixels, self.train) / self.spacing,
            detectability=_detectability(self.reference.images, images) if detect else None,
        )

    def shortened(self, count: int) -> Evaluator:
        """Return the same evaluation on the first `count` samples: for curves, where many evaluations must be cheap."""
        return replace(self, noise=self.noise[:count], labels=self.labels[:count], detect=())


def _detectability(real: Tensor, gen: Tensor) -> float:
    """Take the real images in an order of no meaning; the generated ones are sorted by nothing but their class."""
    order = torch.randperm(len(gen), generator=torch.Generator().manual_seed(0))
    return detectability(real, gen[order])


def build_evaluator(base: Base, splits: Splits, split: str, count: int, seed: int, detect: tuple[int, ...] = ()) -> Evaluator:
    """Prepare an evaluation of `count` samples against a split of that name, its noise drawn from `seed`.

    Raises ValueError for a split that settings must not be chosen on, or that was trained on.
    """
    if split not in ("heldout", "validation"):
        raise ValueError(f"runs are scored on the heldout or the validation split, not on {split!r}")
    reference: Digits = getattr(splits, split)
    real, train = image_set(base.classifier, reference.images), splits.train.images.flatten(1)
    spacing = nearest_distance(real.pixels, train)
    return Evaluator(base, reference, real, train, spacing, *evaluation_noise(count, seed), detect)


@torch.no_grad()
def image_set(classifier: Classifier, images: Tensor) -> ImageSet:
    """Return the classifier's features `(N, 64)` and the pixels `(N, 784)` of images `(N, 1, 28, 28)` in [-1, 1]."""
    return ImageSet(torch.cat([classifier.features(chunk) for chunk in images.split(CHUNK)]), images.flatten(1))
