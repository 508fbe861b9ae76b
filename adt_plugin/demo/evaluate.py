"""Evaluation of a denoiser: its samples from pure noise against real images, in the classifier's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adt_plugin.demo.data import Digits
from adt_plugin.demo.diffusion import evaluation_noise, sample
from adt_plugin.demo.metrics import ImageSet, Scores, score
from adt_plugin.demo.models import Classifier, UNet

SAMPLER_STEPS = (5, 10, 20)
CHUNK = 500

ScoreTable = dict[str, dict[int, Scores]]
"""By sampler, then by the number of its steps."""


@dataclass(frozen=True)
class Evaluator:
    """The fixed part of an evaluation: every run is scored on the same noise against the same images.

    Attributes:
        real: the reference images.
        noise, labels: what sampling starts from, `(M, 4, 8, 8)` and `(M,)`.
    """

    classifier: Classifier
    real: ImageSet
    noise: Tensor
    labels: Tensor

    def evaluate(self, unet: UNet, samplers: Sequence[str] = ("ddim",), steps: Sequence[int] = SAMPLER_STEPS) -> ScoreTable:
        """Return the scores of a denoiser by sampler and number of steps."""
        return {
            sampler: {count: self._score(sample(unet, self.noise, self.labels, count, sampler)) for count in steps}
            for sampler in samplers
        }

    def _score(self, images: Tensor) -> Scores:
        return score(self.real, image_set(self.classifier, images))

    def shortened(self, count: int) -> Evaluator:
        """Return the same evaluation on the first `count` samples: for curves, where many evaluations must be cheap."""
        return Evaluator(self.classifier, self.real, self.noise[:count], self.labels[:count])


def build_evaluator(classifier: Classifier, reference: Digits, count: int, seed: int) -> Evaluator:
    """Prepare an evaluation of `count` samples against `reference`, its noise drawn from `seed`."""
    return Evaluator(classifier, image_set(classifier, reference.images), *evaluation_noise(count, seed))


@torch.no_grad()
def image_set(classifier: Classifier, images: Tensor) -> ImageSet:
    """Return the classifier's features `(N, 48)` and the pixels `(N, 256)` of images `(N, 1, 16, 16)` in [-1, 1]."""
    return ImageSet(torch.cat([classifier.features(chunk) for chunk in images.split(CHUNK)]), images.flatten(1))
