"""Anima in FHfanshu's fork, whose `anima_train_network.py` is its own; its denoiser reads the host's checkpoints.

The fork fills what a file lacks with its own random values, so that the autoencoder's needs to hold nothing.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tinyhost.families.anima import (
    ADAPTER_SIZES,
    DENOISER_SIZES,
    LATENT_CHANNELS,
    NETWORK_MODULE,
    VAE_LEVELS,
    denoiser,
    qwen3,
    write_tokenizers,
)
from tinyhost.text_encoders import with_sizes

__all__ = ["AFTER_IMPORT", "NETWORK_MODULE", "SCRIPTS", "arguments", "write", "write_tokenizers"]

SCRIPTS = ()
"""None unless told so: the script's name is that of the host's own."""

VAE_SIZES = {"dim": 16, "dim_mult": [1] * VAE_LEVELS, "num_res_blocks": 1}

CONFIG = {
    "max_frames": 128,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "rope_enable_fps_modulation": False,
    "use_adaln_lora": True,
}


def shrink_loading(model_loading: ModuleType) -> None:
    """Give the denoiser its sizes, which the fork tells from its width alone."""
    model_loading.load_config_from_ckpt = lambda path: CONFIG | DENOISER_SIZES


def shrink_adapter(anima_modeling: ModuleType) -> None:
    """Give the adapter from Qwen3's outputs to T5's its sizes, which are literals in the denoiser."""
    model = anima_modeling.LLMAdapter
    model.__init__ = with_sizes(model.__init__, ADAPTER_SIZES)


def shrink_vae(vae2_1: ModuleType) -> None:
    """Give the autoencoder sizes of its own."""
    vae2_1.WanVAE_.__init__ = with_sizes(vae2_1.WanVAE_.__init__, VAE_SIZES)


AFTER_IMPORT = {
    "library.anima_runtime.model_loading": shrink_loading,
    "library.anima_backend.modelling.anima_modeling": shrink_adapter,
    "library.anima_backend.modelling.wan.vae2_1": shrink_vae,
}


def arguments(folder: Path) -> tuple[str | Path, ...]:
    files = ("--vae", folder / "vae.safetensors", "--qwen", folder / "qwen3", "--t5_tokenizer_dir", folder / "t5_tokenizer")
    alone = ("--no-auto_start_tensorboard", "--no-auto_download_t5_tokenizer", "--logging_dir", folder / "logs")
    return (*files, *alone, "--anima_seq_len", "16")


def write(folder: Path) -> Path:
    """Write a random tiny Anima, its text encoder and tokenizers, and return the denoiser's path."""
    import torch

    from tinyhost import models, tokenizers, weights

    with models.seeded(0):
        qwen3().save_pretrained(folder / "qwen3")
    for name in ("qwen3", "t5_tokenizer"):
        tokenizers.unigram_tokenizer().save_pretrained(folder / name)
    for name in ("config.json", "spiece.model"):  # which the fork asks for beside the file that it reads
        (folder / "t5_tokenizer" / name).write_text("{}", encoding="utf-8")
    weights.save({"nothing": torch.zeros(1)}, folder / "vae.safetensors")
    return weights.save(weights.random_weights({"net": denoiser()}), folder / "anima.safetensors")
