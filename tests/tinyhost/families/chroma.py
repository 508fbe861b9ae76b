"""Chroma, with the LoRA script of FLUX and `--model_type chroma`: one small network computes the modulations of all blocks.

Like FLUX in all else, but without CLIP.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from tinyhost.families import flux
from tinyhost.weights import Tree, linear, rms_norm

SCRIPTS = ()
NETWORK_MODULE = flux.NETWORK_MODULE

MODULATION_SIZE, MODULATION_INPUT_SIZE, MODULATION_DEPTH = 64, 64, 2
MODULATION_SIZES = {"approximator_hidden_size": MODULATION_SIZE, "approximator_depth": MODULATION_DEPTH}


def shrink_chroma(chroma_models: ModuleType) -> None:
    """Give the denoiser the sizes of the file that `write` makes."""
    depths = {"depth": flux.DEPTH, "depth_single_blocks": flux.DEPTH}
    chroma_models.chroma_params = replace(chroma_models.chroma_params, **depths, **MODULATION_SIZES, **flux.SIZES)


AFTER_IMPORT = {**flux.AFTER_IMPORT, "library.chroma_models": shrink_chroma}

write_tokenizers = flux.write_tokenizers


def arguments(folder: Path) -> tuple[str | Path, ...]:
    return (*flux.arguments(folder), "--model_type", "chroma", "--apply_t5_attn_mask")


def write(folder: Path) -> Path:
    """Write a random tiny Chroma, the text encoders and the autoencoder, and return the denoiser's path."""
    flux.write_companions(folder)
    return flux.write_denoiser({**flux.backbone(modulated=False), "distilled_guidance_layer": modulations()}, folder)


def modulations() -> Tree:
    """The network that computes all modulations."""
    layer = {"in_layer": linear(MODULATION_SIZE, MODULATION_SIZE), "out_layer": linear(MODULATION_SIZE, MODULATION_SIZE)}
    return {
        "in_proj": linear(MODULATION_INPUT_SIZE, MODULATION_SIZE),
        "layers": [layer] * MODULATION_DEPTH,
        "norms": [rms_norm(MODULATION_SIZE, "scale")] * MODULATION_DEPTH,
        "out_proj": linear(MODULATION_SIZE, flux.HIDDEN_SIZE),
    }
