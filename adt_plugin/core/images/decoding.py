"""The denoiser's latents, and a private copy of a VAE's decoder with its own device and precision."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adt_plugin.core.config import HUB_DECODER, OWN_DECODER
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.hub import download_command

LARGE = 512 * 512
"""Pixels of an image whose decoder's graph is worth more than a second decode (ours: about 0.5 GB in bf16)."""


Blocks = Callable[[Any], Iterable[nn.Module]]
"""Finds the parts of a decoder that are worth checkpointing."""


@dataclass(frozen=True)
class LatentFormat:
    """The denoiser's latents are `(z - shift) * scale` of the VAE's z.

    Attributes:
        scale, shift: numbers, or tensors `(C, 1, 1)`.
        frames: the decoder takes `(B, C, 1, h, w)`.
        pixels: of the image to one latent, along a side.
    """

    scale: float | Tensor
    shift: float | Tensor = 0.0
    frames: bool = False
    pixels: int = 8


class LatentDecoder(nn.Module):
    """A VAE's decoder, for latents as the denoiser sees them.

    Gradient checkpointing keeps the decode's backward small. The output is not clamped: a clamped pixel has no gradient.

    Args:
        decoder: of a VAE; frozen here.
        post_quant_conv: of the same, None if it has none.
        latent_format: of the denoiser's latents.
        blocks: finds the parts of the decoder that are worth checkpointing.
    """

    def __init__(self, decoder: Any, post_quant_conv: Any, latent_format: LatentFormat, blocks: Blocks | None = None) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = decoder, post_quant_conv
        for block in (blocks or diffusers_blocks)(self.decoder):
            checkpoint_block(block)
        self.latent_format = latent_format
        self.eval().requires_grad_(False)

    @classmethod
    def copied_from(cls, vae: Any, latent_format: LatentFormat, blocks: Blocks | None = None) -> LatentDecoder:
        """Copy a VAE's decoder, so that its owner can move, cast and use the original as it likes.

        Args:
            vae: has a `decoder`, and a `post_quant_conv` or not.
        """
        return cls(copy.deepcopy(vae.decoder), copy.deepcopy(getattr(vae, "post_quant_conv", None)), latent_format, blocks)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode `(B, C, h, w)` to `(B, 3, H, W)` in float32, about [-1, 1]; one image after another.

        Of several large images nothing is kept for backward but their latents: each is decoded again when its gradient is
        due, so that no more than one graph is alive.
        """
        large = latents.shape[-2] * latents.shape[-1] * self.latent_format.pixels**2 >= LARGE
        again = large and len(latents) > 1 and torch.is_grad_enabled()
        decode = partial(checkpoint, self._decoded, use_reentrant=False) if again else self._decoded
        return torch.cat([decode(image) for image in torch.split(latents, 1)])

    def _decoded(self, latents: Tensor) -> Tensor:
        z = self.unscaled(latents).to(next(self.decoder.parameters()).dtype)
        z = z.unsqueeze(2) if self.latent_format.frames else z
        images: Tensor = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        images = images.squeeze(2) if self.latent_format.frames else images
        return images.float()

    def unscaled(self, latents: Tensor) -> Tensor:
        """Return the VAE's own z of the denoiser's latents."""
        scale, shift = (
            value.to(latents) if isinstance(value, Tensor) else value
            for value in (self.latent_format.scale, self.latent_format.shift)
        )
        return latents / scale + shift


class TinyDecoder(nn.Module):
    """A distilled decoder of the denoiser's own latents (TAESD; diffusers `AutoencoderTiny`), in place of the VAE's.

    Args:
        tiny: its latents are the denoiser's, divided and shifted by what its own configuration says (usually nothing).
    """

    def __init__(self, tiny: Any) -> None:
        super().__init__()
        self.decoder: Any = tiny.decoder
        for block in tiny_blocks(self.decoder):
            checkpoint_block(block)
        self.latent_format = LatentFormat(tiny.config.scaling_factor, tiny.config.shift_factor, pixels=pixels_of(tiny))
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode `(B, C, h, w)` to `(B, 3, H, W)` in float32, about [-1, 1]."""
        z = latents / self.latent_format.scale + self.latent_format.shift
        images: Tensor = self.decoder(z.to(next(self.decoder.parameters()).dtype))
        return images.float()


def pixels_of(tiny: Any) -> int:
    """Return the image's pixels to one latent: every block of the decoder but the last doubles them."""
    return 1 << (len(tiny.config.num_decoder_blocks) - 1)


def load_tiny_decoder(value: str, channels: int, repository: str | None = None) -> TinyDecoder:
    """Load a tiny autoencoder's decoder (safetensors only).

    Args:
        value: a local folder, or `taesd`.
        channels: of the latents that the run trains on.
        repository: on the hub, which `taesd` stands for; None where the model family has none.

    Raises:
        ConfigError: it cannot be loaded, or is for other latents.
    """
    from diffusers import AutoencoderTiny

    source = _repository(repository) if value == HUB_DECODER else _folder(value)
    try:
        tiny, loaded = AutoencoderTiny.from_pretrained(
            source, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        way = f"run `{download_command(source)}` once while there is a network" if value == HUB_DECODER else "check the folder"
        raise ConfigError(f"--adt_decoder {value} could not be loaded, {way} ({reason}).") from error
    if loaded["missing_keys"]:
        raise _no_tiny(value)
    if tiny.config.latent_channels != channels:
        raise ConfigError(
            f"--adt_decoder {value} is for latents of {tiny.config.latent_channels} channels, this model's have {channels}: "
            "use its own."
        )
    return TinyDecoder(tiny)


def _repository(repository: str | None) -> str:
    """Return what `taesd` stands for."""
    if repository is None:
        raise ConfigError(f"--adt_decoder {HUB_DECODER} has no tiny decoder for this model family: use {OWN_DECODER}.")
    return repository


def _folder(value: str) -> str:
    """Return a folder whose configuration does not say that it holds something else, which diffusers would load at length."""
    if not Path(value).is_dir():
        raise ConfigError(
            f"--adt_decoder {value} is no folder: use {OWN_DECODER}, {HUB_DECODER}, or a tiny autoencoder's folder."
        )
    try:
        settings = json.loads((Path(value) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return value  # diffusers says what is wrong with it
    if settings.get("_class_name") != "AutoencoderTiny":
        raise _no_tiny(value)
    return value


def _no_tiny(value: str) -> ConfigError:
    return ConfigError(
        f"--adt_decoder {value} is no tiny autoencoder (diffusers AutoencoderTiny): use {OWN_DECODER} or {HUB_DECODER}."
    )


def diffusers_blocks(decoder: Any) -> Iterator[nn.Module]:
    """Yield the blocks of a decoder in the layout of diffusers; none for another layout."""
    for level in (getattr(decoder, "mid_block", None), *getattr(decoder, "up_blocks", ())):
        if level is None:
            continue
        lists = [child for child in level.children() if isinstance(child, nn.ModuleList)]
        yield from (block for blocks in lists for block in blocks if block is not None)
        if not lists:
            yield level


def tiny_blocks(decoder: Any) -> Iterator[nn.Module]:
    """Yield the blocks of a TAESD's decoder."""
    yield from (layer for layer in decoder.layers if any(True for _ in layer.children()))


def checkpoint_block(block: nn.Module) -> None:
    """Keep only the block's input for backward, and compute the rest again there.

    Not diffusers' own switch: what that needs besides the flag differs from version to version.
    """
    forward = block.forward

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = checkpointed


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return `--adt_decode_dtype` as a torch dtype; never fp16, in which SDXL's VAE overflows."""
    if name == "auto":
        # Not torch.cuda.is_bf16_supported, which counts emulation on older cards.
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bf16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
