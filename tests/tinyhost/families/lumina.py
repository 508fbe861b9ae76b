"""Lumina Image 2.0: `lumina_train_network.py`, `lumina_train.py`, with the autoencoder of FLUX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tinyhost.families import depth, file_arguments, flux
from tinyhost.text_encoders import with_sizes
from tinyhost.tokenizers import UNIGRAM_VOCAB_SIZE
from tinyhost.weights import Tree, linear, rms_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCRIPTS = ("lumina_train_network.py", "lumina_train.py")
NETWORK_MODULE = "networks.lora_lumina"

GEMMA2 = {
    "vocab_size": UNIGRAM_VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
DEPTH = depth()
REFINER_DEPTH = 2  # a default that the host never changes
HEADS, KEY_VALUE_HEADS = 2, 1
ROTARY_SIZES = [16, 16, 16]
HEAD_SIZE = sum(ROTARY_SIZES)
HIDDEN_SIZE = HEADS * HEAD_SIZE
FEED_FORWARD_SIZE = 512  # the host rounds four times the width up to a multiple of 256
TOKEN_SIZE = 64  # 16 latent channels in patches of 2x2


def shrink_denoiser(lumina_models: ModuleType) -> None:
    """Give the denoiser the sizes of the checkpoint that `write` makes."""
    params = lumina_models.LuminaParams
    tiny = replace(
        params.get_2b_config(),
        dim=HIDDEN_SIZE,
        n_layers=DEPTH,
        n_heads=HEADS,
        n_kv_heads=KEY_VALUE_HEADS,
        axes_dims=ROTARY_SIZES,
        axes_lens=[300, 64, 64],
        cap_feat_dim=GEMMA2["hidden_size"],
    )
    params.get_2b_config = classmethod(lambda cls: tiny)


def shrink_text_encoder(lumina_util: ModuleType) -> None:
    """Give Gemma the sizes of the file that `write` makes."""
    lumina_util.Gemma2Config = with_sizes(lumina_util.Gemma2Config, GEMMA2)


AFTER_IMPORT = {
    "library.lumina_models": shrink_denoiser,
    "library.lumina_util": shrink_text_encoder,
    "library.flux_models": flux.shrink_vae,
}


def write_tokenizers(folder: Path) -> None:
    """The tokenizer of Gemma."""
    from tinyhost import tokenizers

    tokenizers.save_for_host(tokenizers.unigram_tokenizer(), folder, "google/gemma-2-2b")


def arguments(folder: Path) -> tuple[str | Path, ...]:
    return (*file_arguments(folder, "ae", "gemma2"), "--gemma2_max_token_length", "16")


def write(folder: Path) -> Path:
    """Write a random tiny Lumina, its text encoder and its autoencoder, and return the denoiser's path."""
    from tinyhost import models, text_encoders, weights

    with models.seeded(0):
        text_encoders.write_parts(folder, gemma2=gemma2())
    flux.write_vae(folder)
    return weights.save(weights.random_weights(denoiser()), folder / "lumina.safetensors")


def gemma2() -> PreTrainedModel:
    """A random Gemma 2 without language head."""
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(**GEMMA2))


def denoiser() -> Tree:
    """NextDiT."""
    return {
        "t_embedder": {"mlp": [linear(256, HIDDEN_SIZE), {}, linear(HIDDEN_SIZE, HIDDEN_SIZE)]},
        "cap_embedder": [rms_norm(GEMMA2["hidden_size"]), linear(GEMMA2["hidden_size"], HIDDEN_SIZE)],
        "x_embedder": linear(TOKEN_SIZE, HIDDEN_SIZE),
        "context_refiner": [block() for _ in range(REFINER_DEPTH)],
        "noise_refiner": [modulated_block() for _ in range(REFINER_DEPTH)],
        "layers": [modulated_block() for _ in range(DEPTH)],
        "norm_final": rms_norm(HIDDEN_SIZE),
        "final_layer": {"linear": linear(HIDDEN_SIZE, TOKEN_SIZE), "adaLN_modulation": modulation(1)},
    }


def modulated_block() -> Tree:
    return {**block(), "adaLN_modulation": modulation(4)}


def modulation(vectors: int) -> Tree:
    return [{}, linear(HIDDEN_SIZE, vectors * HIDDEN_SIZE)]


def block() -> Tree:
    queries_keys_values = (HEADS + 2 * KEY_VALUE_HEADS) * HEAD_SIZE
    norms = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
    return {
        "attention": {
            "qkv": linear(HIDDEN_SIZE, queries_keys_values, bias=False),
            "out": linear(HIDDEN_SIZE, HIDDEN_SIZE, bias=False),
            "q_norm": rms_norm(HEAD_SIZE),
            "k_norm": rms_norm(HEAD_SIZE),
        },
        "feed_forward": {
            "w1": linear(HIDDEN_SIZE, FEED_FORWARD_SIZE, bias=False),
            "w2": linear(FEED_FORWARD_SIZE, HIDDEN_SIZE, bias=False),
            "w3": linear(HIDDEN_SIZE, FEED_FORWARD_SIZE, bias=False),
        },
        **{name: rms_norm(HIDDEN_SIZE) for name in norms},
    }
