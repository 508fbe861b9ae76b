"""Stable Diffusion 1.x: `train_network.py`, `train_db.py`, `fine_tune.py`.

The checkpoint is a diffusers folder: from such a folder the host takes the text encoder and the VAE as they are, whatever
their sizes, and copies the UNet's weights into its own UNet, whose sizes are constants of `library.original_unet`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from tinyhost.text_encoders import clip_sizes, clip_text_model

SCRIPTS = ("train_network.py", "train_db.py", "fine_tune.py")
NETWORK_MODULE = "networks.lora"

BLOCK_OUT_CHANNELS = (32, 64, 64, 64)
# Not the usual 32 groups: at 64x64 pixels the mid block is 1x1, so 64 channels would leave two values to each norm.
NORM_GROUPS = 8
CLIP_HIDDEN_SIZE = 32


def shrink_unet(original_unet: ModuleType) -> None:
    """Give the host's UNet the sizes of the checkpoint that `write` makes."""
    original_unet.BLOCK_OUT_CHANNELS = BLOCK_OUT_CHANNELS
    original_unet.TIMESTEP_INPUT_DIM = BLOCK_OUT_CHANNELS[0]
    original_unet.TIME_EMBED_DIM = BLOCK_OUT_CHANNELS[0] * 4
    original_unet.NORM_GROUPS = NORM_GROUPS
    original_unet.TRANSFORMER_NORM_NUM_GROUPS = NORM_GROUPS


AFTER_IMPORT = {"library.original_unet": shrink_unet}


def write_tokenizers(folder: Path) -> None:
    """The tokenizer of CLIP-L."""
    from tinyhost import tokenizers

    tokenizers.save_for_host(tokenizers.clip_tokenizer(), folder, tokenizers.CLIP_L)


def arguments(folder: Path) -> tuple[str | Path, ...]:
    return ()


def write(folder: Path) -> Path:
    """Write a random tiny checkpoint in diffusers format and return its folder."""
    return write_with_unet(folder)


def write_with_unet(folder: Path, **config: Any) -> Path:
    """`write` with further sizes of the UNet."""
    from diffusers import UNet2DConditionModel

    from tinyhost import models

    with models.seeded(0):
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=BLOCK_OUT_CHANNELS,
            norm_num_groups=NORM_GROUPS,
            cross_attention_dim=CLIP_HIDDEN_SIZE,
            attention_head_dim=2,
            **config,
        )
        vae = models.autoencoder(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
        text_encoder = clip_text_model(clip_sizes(CLIP_HIDDEN_SIZE))
    return models.save_stable_diffusion(folder, unet, vae, text_encoder)
