"""SDXL: `sdxl_train_network.py`, `sdxl_train.py`.

As for SD the checkpoint is a diffusers folder, from which the host takes the text encoders and the VAE as they are and copies
the UNet's weights into its own UNet.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from tinyhost.text_encoders import clip_sizes, clip_text_model

SCRIPTS = ("sdxl_train_network.py", "sdxl_train.py")
NETWORK_MODULE = "networks.lora"

MODEL_CHANNELS = 32
BLOCK_OUT_CHANNELS = (MODEL_CHANNELS, 2 * MODEL_CHANNELS, 4 * MODEL_CHANNELS)
CLIP_L_HIDDEN_SIZE, CLIP_G_HIDDEN_SIZE = 32, 64
CLIP_L_LAYERS = 12  # the host takes the output of the eleventh
SIZE_EMBEDDINGS = 6 * 256


def shrink_unet(sdxl_original_unet: ModuleType) -> None:
    """Give the host's UNet the sizes of the checkpoint that `write` makes.

    The depth and the context width of its transformers are literals. A subclass overrides them, of the same name as the
    host's class because LoRA chooses its modules by class name.
    """
    sdxl_original_unet.MODEL_CHANNELS = MODEL_CHANNELS
    sdxl_original_unet.TIME_EMBED_DIM = 4 * MODEL_CHANNELS
    sdxl_original_unet.ADM_IN_CHANNELS = CLIP_G_HIDDEN_SIZE + SIZE_EMBEDDINGS

    class Transformer2DModel(sdxl_original_unet.Transformer2DModel):
        def __init__(self, **sizes: Any) -> None:
            shrunken = {"num_transformer_layers": 1, "cross_attention_dim": CLIP_L_HIDDEN_SIZE + CLIP_G_HIDDEN_SIZE}
            super().__init__(**sizes | shrunken)

    sdxl_original_unet.Transformer2DModel = Transformer2DModel


AFTER_IMPORT = {"library.sdxl_original_unet": shrink_unet}


def write_tokenizers(folder: Path) -> None:
    """The tokenizers of CLIP-L and CLIP-G."""
    from tinyhost import tokenizers

    for name in (tokenizers.CLIP_L, tokenizers.CLIP_G):
        tokenizers.save_for_host(tokenizers.clip_tokenizer(), folder, name)


def arguments(folder: Path) -> tuple[str | Path, ...]:
    return ()


def write(folder: Path) -> Path:
    """Write a random tiny checkpoint in diffusers format and return its folder."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    from tinyhost import models
    from tinyhost.tokenizers import clip_tokenizer

    with models.seeded(0):
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=BLOCK_OUT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 1, 2),  # heads of 64 channels, a literal in the host
            cross_attention_dim=CLIP_L_HIDDEN_SIZE + CLIP_G_HIDDEN_SIZE,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=CLIP_G_HIDDEN_SIZE + SIZE_EMBEDDINGS,
        )
        vae = models.autoencoder(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
        clip_l = clip_text_model(clip_sizes(CLIP_L_HIDDEN_SIZE, layers=CLIP_L_LAYERS))
        clip_g = clip_text_model(clip_sizes(CLIP_G_HIDDEN_SIZE), projection=True)
    tokenizer = clip_tokenizer()
    parts = (vae, clip_l, clip_g, tokenizer, tokenizer, unet, models.scheduler())
    StableDiffusionXLPipeline(*parts, add_watermarker=False).save_pretrained(folder)
    return folder
