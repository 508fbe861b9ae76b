"""Masks: what of each image is trained. Outside of it the real image stands in the generated one's place."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adt_plugin.core.images.crop import Crop, draw_crop


def resized(mask: Tensor, height: int, width: int) -> Tensor:
    """Return a mask `(B, 1, H, W)` at another size: means over areas, as sd-scripts brings it to the latents' size."""
    return mask if mask.shape[-2:] == (height, width) else F.interpolate(mask, (height, width), mode="area")


def paste(gen: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """Return mask * gen + (1 - mask) * real: what lies outside of the mask is real, and has no gradient.

    Args:
        gen, real: `(B, 3, H, W)`.
        mask: `(B, 1, H, W)` in [0, 1]; ones leave every bit of `gen` and its gradient as they are.
    """
    mask = resized(mask.to(gen), gen.shape[-2], gen.shape[-1])
    return mask * gen + (1 - mask) * real


def draw_crop_on(mask: Tensor, height: int, width: int, side: int, generator: torch.Generator) -> Crop:
    """Draw a crop as `draw_crop` does, but with equal probability among those that hold a part of the most masks.

    With masks of ones nothing is drawn but what `draw_crop` draws.

    Args:
        mask: `(B, 1, H, W)` in [0, 1], on the CPU.
        height, width, side: as for `draw_crop`, in latents.
        generator: CPU generator.
    """
    first = draw_crop(height, width, side, generator)
    trained = (F.adaptive_max_pool2d(mask.float(), (height, width)) > 0).float()
    held = F.max_pool2d(trained, (first.height, first.width), stride=1).sum((0, 1))  # by the crop's top and left
    if held[first.top, first.left] == held.max():
        return first
    places = (held == held.max()).nonzero()
    top, left = places[int(torch.randint(len(places), (1,), generator=generator))].tolist()
    return replace(first, top=top, left=left)
