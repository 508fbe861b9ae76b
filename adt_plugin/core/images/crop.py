"""A random crop of the image, so that the decoder and the discriminator work on a part of it (`--adt_decode_crop`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """A rectangle of latents, for all images of a batch alike; the unit of all four numbers is one latent."""

    top: int
    left: int
    height: int
    width: int

    def apply(self, maps: Tensor, scale: int = 1) -> Tensor:
        """Cut the crop out of maps `(B, C, H, W)` that have `scale` pixels to a latent along each side."""
        rows = slice(self.top * scale, (self.top + self.height) * scale)
        columns = slice(self.left * scale, (self.left + self.width) * scale)
        return maps[..., rows, columns]


def draw_crop(height: int, width: int, side: int, generator: torch.Generator) -> Crop:
    """Draw a crop of `side` x `side` latents, anywhere with equal probability; a side shorter than that is taken whole.

    Args:
        height, width: of the image, in latents.
        side: in latents; 0 takes the whole image.
        generator: CPU generator; nothing is drawn for a side that is taken whole.
    """
    rows, columns = (min(side or length, length) for length in (height, width))
    return Crop(_offset(height - rows, generator), _offset(width - columns, generator), rows, columns)


def _offset(room: int, generator: torch.Generator) -> int:
    """Draw uniformly from 0..room."""
    return int(torch.randint(room + 1, (1,), generator=generator)) if room else 0
