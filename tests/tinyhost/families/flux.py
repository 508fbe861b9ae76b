"""FLUX: `flux_train_network.py`, `flux_train.py`.

The host reads the depth of the denoiser from the checkpoint, its other sizes from a table, and those of the text encoders are
literals.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from tinyhost.autoencoders import autoencoder_weights, ldm_autoencoder
from tinyhost.families import depth, file_arguments
from tinyhost.text_encoders import clip_sizes, t5_sizes, with_sizes
from tinyhost.weights import Tree, linear, rms_norm

SCRIPTS = ("flux_train_network.py", "flux_train.py")
NETWORK_MODULE = "networks.lora_flux"

DEPTH = depth()
HIDDEN_SIZE, HEADS = 64, 2
HEAD_SIZE = HIDDEN_SIZE // HEADS
TOKEN_SIZE = 64  # 16 latent channels in patches of 2x2
LATENT_CHANNELS = 16
VAE_CHANNELS = 32

CLIP_L = clip_sizes(hidden_size=32)
T5 = t5_sizes(d_model=32)

SIZES = {"context_in_dim": T5["d_model"], "hidden_size": HIDDEN_SIZE, "num_heads": HEADS, "axes_dim": [8, 12, 12]}
VAE_SIZES = {"ch": VAE_CHANNELS, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def shrink_models(flux_models: ModuleType) -> None:
    """Give the denoiser and the autoencoder the sizes of the files that `write` makes."""
    for model in flux_models.configs.values():
        model.params = replace(model.params, vec_in_dim=CLIP_L["hidden_size"], **SIZES)
    shrink_vae(flux_models)


def shrink_vae(flux_models: ModuleType) -> None:
    for model in flux_models.configs.values():
        model.ae_params = replace(model.ae_params, **VAE_SIZES)


def shrink_text_encoders(flux_utils: ModuleType) -> None:
    """Give CLIP and T5 the sizes of the files that `write` makes."""
    flux_utils.CLIPConfig = with_sizes(flux_utils.CLIPConfig, CLIP_L)
    flux_utils.T5Config = with_sizes(flux_utils.T5Config, T5)


AFTER_IMPORT = {"library.flux_models": shrink_models, "library.flux_utils": shrink_text_encoders}


def write_tokenizers(folder: Path) -> None:
    """The tokenizers of CLIP-L and T5."""
    from tinyhost import tokenizers

    tokenizers.save_for_host(tokenizers.clip_tokenizer(), folder, tokenizers.CLIP_L)
    tokenizers.save_for_host(tokenizers.unigram_tokenizer(), folder, tokenizers.T5)


def arguments(folder: Path) -> tuple[str | Path, ...]:
    return (
        *file_arguments(folder, "ae", "clip_l", "t5xxl"),
        "--t5xxl_max_token_length",
        "16",
        "--model_prediction_type",
        "raw",
        "--timestep_sampling",
        "shift",
    )


def write(folder: Path) -> Path:
    """Write a random tiny FLUX.1 [dev], its text encoders and its autoencoder, and return the denoiser's path."""
    write_companions(folder)
    return write_denoiser(denoiser(), folder)


def write_denoiser(tree: Tree, folder: Path) -> Path:
    from tinyhost import weights

    return weights.save(weights.random_weights(tree), folder / f"{folder.name}.safetensors")


def write_companions(folder: Path) -> None:
    """Write the text encoders and the autoencoder."""
    from tinyhost import models, text_encoders

    with models.seeded(0):
        text_encoders.write_parts(folder, clip_l=text_encoders.clip_text_model(CLIP_L), t5xxl=text_encoders.t5_encoder(T5))
    write_vae(folder)


def write_vae(folder: Path) -> None:
    from tinyhost import weights

    vae = ldm_autoencoder((VAE_CHANNELS,) * 4, blocks=1, latent_channels=LATENT_CHANNELS)
    weights.save(autoencoder_weights(vae), folder / "ae.safetensors")


def denoiser() -> Tree:
    """FLUX.1 [dev]: with an embedding of the guidance scale."""
    return {
        **{
            name: embedder(size)
            for name, size in (("time_in", 256), ("guidance_in", 256), ("vector_in", CLIP_L["hidden_size"]))
        },
        **backbone(modulated=True),
    }


def backbone(modulated: bool) -> Tree:
    """What FLUX and Chroma have in common; Chroma's blocks have no modulations of their own."""

    def modulation(name: str, vectors: int) -> Tree:
        return {name: {"lin": linear(HIDDEN_SIZE, vectors * HIDDEN_SIZE)}} if modulated else {}

    def stream(name: str) -> Tree:
        attention = {
            "qkv": linear(HIDDEN_SIZE, 3 * HIDDEN_SIZE),
            "norm": head_norms(),
            "proj": linear(HIDDEN_SIZE, HIDDEN_SIZE),
        }
        mlp = [linear(HIDDEN_SIZE, 4 * HIDDEN_SIZE), {}, linear(4 * HIDDEN_SIZE, HIDDEN_SIZE)]
        return {**modulation(f"{name}_mod", 6), f"{name}_attn": attention, f"{name}_mlp": mlp}

    single = {"linear1": linear(HIDDEN_SIZE, 7 * HIDDEN_SIZE), "linear2": linear(5 * HIDDEN_SIZE, HIDDEN_SIZE)}
    last = {"adaLN_modulation": [{}, linear(HIDDEN_SIZE, 2 * HIDDEN_SIZE)]} if modulated else {}
    return {
        "img_in": linear(TOKEN_SIZE, HIDDEN_SIZE),
        "txt_in": linear(T5["d_model"], HIDDEN_SIZE),
        "double_blocks": [{**stream("img"), **stream("txt")} for _ in range(DEPTH)],
        "single_blocks": [{**single, "norm": head_norms(), **modulation("modulation", 3)} for _ in range(DEPTH)],
        "final_layer": {"linear": linear(HIDDEN_SIZE, TOKEN_SIZE), **last},
    }


def embedder(inputs: int) -> Tree:
    return {"in_layer": linear(inputs, HIDDEN_SIZE), "out_layer": linear(HIDDEN_SIZE, HIDDEN_SIZE)}


def head_norms() -> Tree:
    return {"query_norm": rms_norm(HEAD_SIZE, "scale"), "key_norm": rms_norm(HEAD_SIZE, "scale")}
