"""Stable Diffusion 2.x, with the scripts of SD 1.x and `--v2`: attention with linear projections, and another tokenizer.

Like SD 1.x in all else, so that the model is shrunk in the same way.
"""

from __future__ import annotations

from pathlib import Path

from tinyhost.families import sd

SCRIPTS = ()
NETWORK_MODULE = sd.NETWORK_MODULE
AFTER_IMPORT = sd.AFTER_IMPORT


def write_tokenizers(folder: Path) -> None:
    """The tokenizer of SD 2.x."""
    from tinyhost import tokenizers

    tokenizers.save_for_host(tokenizers.clip_tokenizer(), folder, "stabilityai/stable-diffusion-2", "tokenizer")


def arguments(folder: Path) -> tuple[str | Path, ...]:
    return ("--v2",)


def write(folder: Path) -> Path:
    """Write a random tiny checkpoint in diffusers format and return its folder."""
    return sd.write_with_unet(folder, use_linear_projection=True)
