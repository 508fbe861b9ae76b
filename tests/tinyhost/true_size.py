"""Random models of true size: what a step and a turn take and need follows from their sizes, not from their weights.

`write_sd15`, `write_sdxl`, `write_sd3` and `write_flux` write one into a folder and return what the host's scripts need of it;
`written` returns that of a folder that is filled already. Of SD3 and FLUX the denoiser and the autoencoder are of true size;
their text encoders, 5 billion weights, are tiny ones whose outputs have the true widths and lengths. With
`--cache_text_encoder_outputs --network_train_unet_only` no step calls a text encoder, so that what these cost is no part of a
step. What it costs to cache their outputs is in no such run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tinyhost import families
from tinyhost.families import file_arguments
from tinyhost.models import HostModel, autoencoder, save_stable_diffusion, seeded
from tinyhost.text_encoders import clip_sizes, clip_text_model
from tinyhost.true import flux, sd3
from tinyhost.true.sdxl import sdxl
from tinyhost.weights import save_random

SD15, SDXL, SD3, FLUX = "sd15", "sdxl.safetensors", "sd3_medium.safetensors", "flux1-dev.safetensors"
"""What the checkpoints are called in their folders."""

FLUX_GIGABYTES = {"bfloat16": 24.3, "float8_e4m3fn": 12.4}


def written(family: str, folder: Path) -> HostModel:
    """What the host's scripts need of the model (`sd15`, `sdxl`, `sd3`, `flux`) that lies in `folder`."""
    if family in ("sd15", "sdxl"):
        return as_it_is("sd", folder / SD15) if family == "sd15" else as_it_is("sdxl", folder / SDXL)
    checkpoint, files = (folder / SD3, sd3.FILES) if family == "sd3" else (folder / FLUX, flux.FILES)
    arguments = (*map(str, file_arguments(folder, *files)), *(flux.ARGUMENTS if family == "flux" else ()))
    return HostModel(checkpoint, folder / "tokenizers", families.load(family).NETWORK_MODULE, f"true.{family}", arguments)


def as_it_is(family: str, checkpoint: Path) -> HostModel:
    """A model with which the host stays as it is. Its tokenizers lie beside it."""
    return HostModel(checkpoint, checkpoint.parent / "tokenizers", families.load(family).NETWORK_MODULE)


def write_sd15(folder: Path) -> HostModel:
    """Write a random model with the sizes of Stable Diffusion 1.5, in fp16 (2.1 GB)."""
    from diffusers import UNet2DConditionModel

    require_space(folder, "SD 1.5", 2.2)
    with seeded(0):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half()
        vae = autoencoder(block_out_channels=(128, 256, 512, 512), layers_per_block=2).half()
        text_encoder = clip_text_model(clip_sizes(768, layers=12, heads=12, vocab_size=49408)).half()
    save_stable_diffusion(folder / SD15, unet, vae, text_encoder)
    families.load("sd").write_tokenizers(folder / "tokenizers")
    return written("sd15", folder)


def write_sdxl(folder: Path) -> HostModel:
    """Write a random model with the sizes of SDXL, in bf16 (6.9 GB, a single file)."""
    require_space(folder, "SDXL", 7.0)
    save_random(sdxl(), folder / SDXL)
    families.load("sdxl").write_tokenizers(folder / "tokenizers")
    return written("sdxl", folder)


def write_sd3(folder: Path) -> HostModel:
    """Write a random model with the sizes of Stable Diffusion 3 medium, in bf16 (4.4 GB, a single file, and text encoders)."""
    require_space(folder, "SD3", 4.6)
    save_random(sd3.checkpoint(), folder / SD3)
    sd3.write_text_encoders(folder)
    families.load("sd3").write_tokenizers(folder / "tokenizers")
    return written("sd3", folder)


def write_flux(folder: Path, dtype: str = "bfloat16") -> HostModel:
    """Write a random model with the sizes of FLUX.1 [dev]: 24 GB in bf16, 12 GB as `float8_e4m3fn`, and what belongs to it.

    The host turns the former into the latter with `--fp8_base` whenever it loads it, and takes a file in fp8 as it is.
    """
    require_space(folder, "FLUX.1", FLUX_GIGABYTES[dtype])
    save_random(flux.denoiser(), folder / FLUX, dtype)
    save_random(flux.vae(), folder / "ae.safetensors")
    flux.write_text_encoders(folder)
    families.load("flux").write_tokenizers(folder / "tokenizers")
    return written("flux", folder)


def require_space(folder: Path, name: str, gigabytes: float) -> None:
    """Make the folder, or raise OSError if its disk is too small."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise OSError(f"a random {name} takes {gigabytes} GB, but {folder} has {free:.1f} GB free")
