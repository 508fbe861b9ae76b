"""FLUX.1 [dev] at its true size, twelve billion weights; tiny text encoders of the true widths."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tinyhost.autoencoders import ldm_autoencoder
from tinyhost.families import flux
from tinyhost.text_encoders import clip_sizes, t5_sizes
from tinyhost.weights import Tree

SIZES = flux.Denoiser(hidden=3072, head=128, context=4096, pooled=768, doubles=19, singles=38)
CLIP_L, T5 = clip_sizes(hidden_size=SIZES.pooled), t5_sizes(d_model=SIZES.context)

FILES = ("ae", "clip_l", "t5xxl")
ARGUMENTS = ("--model_prediction_type", "raw", "--timestep_sampling", "shift", "--discrete_flow_shift", "3.1582")
ARGUMENTS += ("--guidance_scale", "1.0")


def shrink_text_encoders(flux_utils: ModuleType) -> None:
    flux.shrink_text_encoders(flux_utils, CLIP_L, T5)


AFTER_IMPORT = {"library.flux_utils": shrink_text_encoders}


def denoiser() -> Tree:
    return flux.denoiser(SIZES)


def vae() -> Tree:
    return ldm_autoencoder((128, 256, 512, 512), blocks=2, latent_channels=flux.LATENT_CHANNELS)


def write_text_encoders(folder: Path) -> None:
    flux.write_text_encoders(folder, CLIP_L, T5)
