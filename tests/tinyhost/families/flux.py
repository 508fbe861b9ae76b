"""FLUX: `flux_train_network.py`, `flux_train.py`.

The host reads the depth of the denoiser from the checkpoint, its other sizes from a table, and those of the text encoders are
literals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from tinyhost.autoencoders import autoencoder_weights, ldm_autoencoder
from tinyhost.families import depth, file_arguments
from tinyhost.text_encoders import Sizes, clip_sizes, t5_sizes, with_sizes
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


@dataclass(frozen=True)
class Denoiser:
    """Sizes of a denoiser: widths of its tokens, a head, the text's tokens and the pooled vector; blocks of both kinds."""

    hidden: int = HIDDEN_SIZE
    head: int = HEAD_SIZE
    context: int = T5["d_model"]
    pooled: int = CLIP_L["hidden_size"]
    doubles: int = DEPTH
    singles: int = DEPTH


TINY = Denoiser()

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


def shrink_text_encoders(flux_utils: ModuleType, clip_l: Sizes = CLIP_L, t5: Sizes = T5) -> None:
    """Give CLIP and T5 the sizes of the files that `write` makes, or those of others."""
    flux_utils.CLIPConfig = with_sizes(flux_utils.CLIPConfig, clip_l)
    flux_utils.T5Config = with_sizes(flux_utils.T5Config, t5)


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
    write_text_encoders(folder)
    write_vae(folder)


def write_text_encoders(folder: Path, clip_l: Sizes = CLIP_L, t5: Sizes = T5) -> None:
    from tinyhost import models, text_encoders

    with models.seeded(0):
        text_encoders.write_parts(folder, clip_l=text_encoders.clip_text_model(clip_l), t5xxl=text_encoders.t5_encoder(t5))


def write_vae(folder: Path) -> None:
    from tinyhost import weights

    vae = ldm_autoencoder((VAE_CHANNELS,) * 4, blocks=1, latent_channels=LATENT_CHANNELS)
    weights.save(autoencoder_weights(vae), folder / "ae.safetensors")


def denoiser(sizes: Denoiser = TINY) -> Tree:
    """FLUX.1 [dev]: with an embedding of the guidance scale."""
    inputs = {"time_in": 256, "guidance_in": 256, "vector_in": sizes.pooled}
    return {
        **{name: embedder(size, sizes.hidden) for name, size in inputs.items()},
        **backbone(modulated=True, sizes=sizes),
    }


def backbone(modulated: bool, sizes: Denoiser = TINY) -> Tree:
    """What FLUX and Chroma have in common; Chroma's blocks have no modulations of their own."""
    hidden, norms = sizes.hidden, head_norms(sizes.head)

    def modulation(name: str, vectors: int) -> Tree:
        return {name: {"lin": linear(hidden, vectors * hidden)}} if modulated else {}

    def stream(name: str) -> Tree:
        attention = {"qkv": linear(hidden, 3 * hidden), "norm": norms, "proj": linear(hidden, hidden)}
        mlp = [linear(hidden, 4 * hidden), {}, linear(4 * hidden, hidden)]
        return {**modulation(f"{name}_mod", 6), f"{name}_attn": attention, f"{name}_mlp": mlp}

    single = {"linear1": linear(hidden, 7 * hidden), "linear2": linear(5 * hidden, hidden)}
    last = {"adaLN_modulation": [{}, linear(hidden, 2 * hidden)]} if modulated else {}
    return {
        "img_in": linear(TOKEN_SIZE, hidden),
        "txt_in": linear(sizes.context, hidden),
        "double_blocks": [{**stream("img"), **stream("txt")} for _ in range(sizes.doubles)],
        "single_blocks": [{**single, "norm": norms, **modulation("modulation", 3)} for _ in range(sizes.singles)],
        "final_layer": {"linear": linear(hidden, TOKEN_SIZE), **last},
    }


def embedder(inputs: int, hidden: int) -> Tree:
    return {"in_layer": linear(inputs, hidden), "out_layer": linear(hidden, hidden)}


def head_norms(size: int) -> Tree:
    return {"query_norm": rms_norm(size, "scale"), "key_norm": rms_norm(size, "scale")}
