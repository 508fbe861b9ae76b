"""Images to train the beds' networks on: warped digits, and the small Stable Diffusion's, in colour at 64x64 in two styles."""

from __future__ import annotations

import colorsys

import torch
import torch.nn.functional as F
from torch import Tensor

from adt_plugin.demo.data import Digits

SIDE = 64
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = tuple(f"digit {word}" for word in WORDS)
STYLES = ("night", "paper")
"""`night`, which the base learns: amber strokes on dark blue. `paper`, which a LoRA learns: inked outlines on light paper."""
HUE_SPREAD = 0.06  # each image's own hues lie so close to its style's, so that a small autoencoder can keep them


def render(digits: Digits, style: str, generator: torch.Generator) -> Tensor:
    """Return images `(N, 3, 64, 64)` in [-1, 1]: crisp strokes, slightly warped, with colours near the style's.

    Raises KeyError for a style that does not exist.
    """
    wide = F.pad(F.interpolate(digits.images, size=SIDE - 8, mode="bicubic", align_corners=False), (4, 4, 4, 4), value=-1.0)
    grey = warp(wide, generator, angle=10, stretch=0.08, shift=0.06)
    return PAINTERS[style](grey, HUE_SPREAD * (torch.rand((len(grey), 2), generator=generator) - 0.5)) * 2 - 1


def _night(grey: Tensor, hues: Tensor) -> Tensor:
    stroke = torch.sigmoid(grey * 6)
    return torch.lerp(_colour(0.62 + hues[:, 1], 0.6, 0.25), _colour(0.11 + hues[:, 0], 0.7, 1.0), stroke)


def _paper(grey: Tensor, hues: Tensor) -> Tensor:
    stroke, outline = torch.sigmoid(grey * 6), torch.exp(-(((grey + 0.1) / 0.5) ** 2))
    filled = torch.lerp(_colour(0.14 + hues[:, 1], 0.08, 1.0), _colour(0.52 + hues[:, 0], 0.35, 1.0), stroke)
    return torch.lerp(filled, _colour(0.6 + hues[:, 0], 0.9, 0.35), outline)


PAINTERS = dict(zip(STYLES, (_night, _paper), strict=True))


def _colour(hue: Tensor, saturation: float, value: float) -> Tensor:
    """Return RGB `(N, 3, 1, 1)` in 0..1."""
    return torch.tensor([colorsys.hsv_to_rgb(h, saturation, value) for h in hue.tolist()])[:, :, None, None]


def warp(images: Tensor, generator: torch.Generator, angle: float, stretch: float, shift: float = 0.0) -> Tensor:
    """Put images `(B, 1, H, W)` under random affine maps, each image its own; edges are continued outwards.

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
