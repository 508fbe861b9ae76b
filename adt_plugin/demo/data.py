"""The data: scikit-learn's handwritten digits, 8x8, brought to 16x16, in three disjoint splits.

The "VAE" of the miniature is a pixel shuffle: exact, free, and four channels deep as Stable Diffusion's latents are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 16
LATENT_PIXELS = 2  # along a side
LATENT_SHAPE = (4, 8, 8)
CLASSES = 10
SPLIT_SIZES = (800, 300, 697)  # train, validation, held-out; together all 1797 digits


@dataclass(frozen=True)
class Digits:
    """Images `(N, 1, 16, 16)` in [-1, 1] and their classes `(N,)` in 0..9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Splits:
    """`train` is learnt from, settings are chosen on `validation`, reported figures come from `heldout`."""

    train: Digits
    validation: Digits
    heldout: Digits


def load_splits() -> Splits:
    """Load the three splits, shuffled once with a fixed seed: the same for every run and every machine.

    Raises ImportError with the command to run where scikit-learn is missing.
    """
    digits = _load_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    parts = [Digits(digits.images[index], digits.labels[index]) for index in order.split(list(SPLIT_SIZES))]
    return Splits(*parts)


def _load_digits() -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the miniature's data comes with scikit-learn: pip install 'adt_plugin[demo]'") from error
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1  # 0..16 -> [-1, 1]
    images = F.interpolate(pixels, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    return Digits(images, torch.from_numpy(bunch.target).long())


def encode(images: Tensor) -> Tensor:
    """Return latents `(B, 4, 8, 8)` of images `(B, 1, 16, 16)`, both in [-1, 1]."""
    return F.pixel_unshuffle(images, LATENT_PIXELS)


def decode(latents: Tensor) -> Tensor:
    """Return images `(B, 1, 16, 16)` of latents `(B, 4, 8, 8)`: the exact inverse of `encode`, differentiable."""
    return F.pixel_shuffle(latents, LATENT_PIXELS)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return warped, blurred and dimmed images `(B, 1, 16, 16)` in [-1, 1]: the off-domain data of the first pretraining.

    Each image is rotated by up to 30 degrees, stretched and sheared by up to a quarter, smoothed, and dimmed to
    50-80 % of its brightness.
    """
    warped = warp(images, generator, angle=30, stretch=0.25)
    blurred = F.avg_pool2d(F.pad(warped, (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)
    dim = _uniform((len(images), 1, 1, 1), 0.5, 0.8, generator)
    return (blurred + 1) * dim - 1


def warp(images: Tensor, generator: torch.Generator, angle: float, stretch: float, shift: float = 0.0) -> Tensor:
    """Put images `(B, 1, 16, 16)` under random affine maps, each image its own; edges are continued outwards.

    Args:
        angle: largest rotation, in degrees.
        stretch: largest change of each entry of the 2x2 matrix: scale on its diagonal, shear off it.
        shift: largest translation, as a fraction of half the image's side.
    """
    batch = len(images)
    turn = torch.deg2rad(_uniform((batch,), -angle, angle, generator))
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=1).view(batch, 2, 2)
    matrix = rotation @ (torch.eye(2) + _uniform((batch, 2, 2), -stretch, stretch, generator))
    theta = torch.cat([matrix, _uniform((batch, 2, 1), -shift, shift, generator)], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


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
