"""Differentiable augmentation of the discriminator's inputs (DiffAugment, arXiv 2006.10738, milder; shift is ours).

Every augmentation is `(images (B, C, H, W) in [-1, 1], generator) -> images of the same shape`, with its own draw for
every image of the batch. Draws come from an injected CPU generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def _uniform(images: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw once per image, `(B, 1, 1, 1)` on the images' device."""
    draw = torch.rand(len(images), 1, 1, 1, generator=generator) * (high - low) + low
    return draw.to(images.device, images.dtype, non_blocking=True)


def _offsets(images: Tensor, reach_y: int, reach_x: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw integers in [-reach, reach] for every image, two of shape `(B, 1)`."""
    dy = torch.randint(-reach_y, reach_y + 1, (len(images), 1), generator=generator)
    dx = torch.randint(-reach_x, reach_x + 1, (len(images), 1), generator=generator)
    return dy.to(images.device, non_blocking=True), dx.to(images.device, non_blocking=True)


def _moved(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Move every image by its own whole pixels; the border is repeated."""
    batch, _, height, width = images.shape
    rows = (torch.arange(height, device=images.device) + dy).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + dx).clamp(0, width - 1)
    index = torch.arange(batch, device=images.device).view(-1, 1, 1)
    return images.permute(0, 2, 3, 1)[index, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def color(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness by up to 0.25, saturation and contrast by factors from 0.5 to 1.5."""
    images = images + _uniform(images, -0.25, 0.25, generator)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * _uniform(images, 0.5, 1.5, generator)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * _uniform(images, 0.5, 1.5, generator)


def translation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move by up to a sixteenth of each side."""
    return _moved(images, *_offsets(images, max(1, images.shape[-2] // 16), max(1, images.shape[-1] // 16), generator))


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Grey out a rectangle of a quarter of each side."""
    height, width = images.shape[-2:]
    top, left = (
        torch.randint(-(side // 8), side - side // 8, (len(images), 1), generator=generator).to(
            images.device, non_blocking=True
        )
        for side in (height, width)
    )
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside_rows = (rows >= top) & (rows < top + height // 4)
    inside_columns = (columns >= left) & (columns < left + width // 4)
    hole = inside_rows.view(-1, 1, height, 1) & inside_columns.view(-1, 1, 1, width)
    return images * ~hole


def shift(images: Tensor, generator: torch.Generator, patch_size: int) -> Tensor:
    """Move by up to half a patch: the generator cannot paint on the backbone's patch grid unseen (dino_perceptual #8)."""
    reach = patch_size // 2
    return _moved(images, *_offsets(images, reach, reach, generator))


AUGMENTATIONS: dict[str, Augmentation] = {"color": color, "translation": translation, "cutout": cutout}
"""By name; `shift` is added by `Augment`, since its reach is the backbone's."""


class Augment:
    """The chosen augmentations, applied in turn.

    Args:
        names: of `AUGMENTATIONS`, or `shift`.
        patch_size: the backbone's, in pixels.
        generator: CPU generator of all draws.
        noise: standard deviation of the Gaussian noise that is added last (instance noise, arXiv 1610.04490): what it
            drowns, the discriminator cannot use and the generator need not imitate.
    """

    def __init__(self, names: Sequence[str], patch_size: int, generator: torch.Generator, noise: float = 0.0) -> None:
        table = AUGMENTATIONS | {"shift": lambda images, generator: shift(images, generator, patch_size)}
        self.chosen = [table[name] for name in names]
        self.generator, self.noise = generator, noise

    def __call__(self, images: Tensor) -> Tensor:
        """Return augmented images, each with its own draws."""
        for augmentation in self.chosen:
            images = augmentation(images, self.generator)
        if self.noise == 0:
            return images
        drawn = torch.randn(images.shape, generator=self.generator).to(images.device, images.dtype, non_blocking=True)
        return images + self.noise * drawn
