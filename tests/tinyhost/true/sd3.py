"""Stable Diffusion 3 medium at its true size, two billion weights; tiny text encoders of the true widths."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tinyhost.autoencoders import ldm_autoencoder
from tinyhost.families import sd3
from tinyhost.text_encoders import clip_sizes
from tinyhost.weights import Tree

CLIP_L, CLIP_G = clip_sizes(hidden_size=768), clip_sizes(hidden_size=1280)
SIZES = sd3.Denoiser(hidden=1536, depth=24, positions=192, pooled=768 + 1280)

FILES = ("clip_l", "clip_g", "t5xxl")


def shrink_clip(sd3_utils: ModuleType) -> None:
    sd3.shrink_clip(sd3_utils, CLIP_L, CLIP_G)


AFTER_IMPORT = {"library.sd3_utils": shrink_clip, "library.flux_utils": sd3.shrink_t5}


def checkpoint() -> Tree:
    """Denoiser and autoencoder in one file, as it is published."""
    vae = ldm_autoencoder((128, 256, 512, 512), blocks=2, latent_channels=sd3.LATENT_CHANNELS)
    return {"model": {"diffusion_model": sd3.denoiser(SIZES)}, "first_stage_model": vae}


def write_text_encoders(folder: Path) -> None:
    sd3.write_text_encoders(folder, CLIP_L, CLIP_G)
