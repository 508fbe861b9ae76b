"""The host's VAEs: how the denoiser's latents relate to theirs, and the blocks of their decoders."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from adt_plugin.core.images.decoding import LatentFormat


def autoencoder_format(vae: Any) -> LatentFormat:
    """Return the format of FLUX's autoencoder, also Lumina's: its `encode` has scaled already."""
    return LatentFormat(vae.scale_factor, vae.shift_factor)


def qwen_vae(loaded: Any) -> Any:
    """Return Qwen-Image's VAE with the names of its parts; FHfanshu's fork has Wan's module, and a mean and 1 / deviation."""
    if hasattr(loaded, "latents_mean"):
        return loaded
    mean, inverse = loaded.scale
    parts = {"decoder": loaded.model.decoder, "post_quant_conv": loaded.model.conv2}
    return SimpleNamespace(**parts, latents_mean=mean.tolist(), latents_std=(1 / inverse).tolist())


def qwen_format(vae: Any) -> LatentFormat:
    """Return Qwen-Image's format: a mean and a deviation per channel; a video decoder, or its variant for images alone."""
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    convolution = next(parameter for parameter in vae.decoder.parameters() if parameter.ndim >= 4)
    return LatentFormat(1 / deviation, mean, frames=convolution.ndim == 5)


def original_blocks(decoder: Any) -> Iterator[nn.Module]:
    """Yield the blocks of a decoder in the layout of the original latent diffusion code: SD3, FLUX, Lumina, HunyuanImage."""
    if not (hasattr(decoder, "mid") and hasattr(decoder, "up")):  # another layout costs memory, not the run
        return
    yield from decoder.mid.children()
    for level in decoder.up:
        yield from level.block
        if hasattr(level, "upsample"):
            yield level.upsample
