"""A model so small that everything can be run through in a moment: for tests, and for `gpu-check --tiny`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.cost.models import TrueSize

NAME = "tiny"
"""Of the model, and of the backbone that goes with it."""

OPTIONS: dict[str, Any] = {"backbone": NAME, "image_size": 28, "disc_width": 16}
"""Of the plugin, at the model's size."""


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def _bind(network: nn.Module, batch: int) -> Denoiser:
    """Bind a prompt that is the same on every device."""
    weight = next(network.parameters())
    prompt = torch.linspace(-1, 1, 7 * 16, device=weight.device, dtype=weight.dtype).view(1, 7, 16).expand(batch, -1, -1)
    return lambda x, t: network(x, t.to(x.device), prompt).sample


TINY = TrueSize("Tiny", 64, _unet, _bind, vae_channels=(32, 32, 32, 32))
"""Eight pixels to a latent, as the others have."""
