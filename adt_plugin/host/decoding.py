"""A private copy of the host's decoder, with its own device and precision."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class LatentDecoder(nn.Module):
    """Latents as the denoiser sees them to images.

    The host moves its VAE between devices and precisions as it likes, and encodes with it; the copy (decoder only) leaves
    that alone. Gradient checkpointing keeps the decode's backward small.

    Args:
        vae: diffusers `AutoencoderKL`.
        scale, shift: the denoiser's latents are `(z - shift) * scale`.
    """

    def __init__(self, vae: Any, scale: float, shift: float) -> None:
        super().__init__()
        self.post_quant_conv: Any = copy.deepcopy(getattr(vae, "post_quant_conv", None))
        self.decoder: Any = copy.deepcopy(vae.decoder)
        for block in (getattr(self.decoder, "mid_block", None), *getattr(self.decoder, "up_blocks", ())):
            if block is not None:
                checkpoint_block(block)
        self.scale, self.shift = scale, shift
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        """`(B, C, h, w)` -> `(B, 3, H, W)` in float32, about [-1, 1]."""
        z = (latents / self.scale + self.shift).to(next(self.decoder.parameters()).dtype)
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z)).float()


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
    """`--adt_decode_dtype` as a torch dtype; never fp16, in which SDXL's VAE overflows."""
    if name == "auto":
        # Not torch.cuda.is_bf16_supported, which counts emulation on older cards.
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bf16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
