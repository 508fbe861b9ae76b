"""SD3: `sd3_train_network.py`, `sd3_train.py`.

The host reads the sizes of the denoiser from the checkpoint; those of the text encoders and of the VAE are literals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tinyhost.autoencoders import autoencoder_weights, ldm_autoencoder
from tinyhost.families import depth, file_arguments
from tinyhost.text_encoders import Sizes, clip_sizes, t5_sizes, with_sizes
from tinyhost.weights import Tree, conv, linear

SCRIPTS = ("sd3_train_network.py", "sd3_train.py")
NETWORK_MODULE = "networks.lora_sd3"

DEPTH = depth()
HIDDEN_SIZE = 64 * DEPTH  # the host derives the depth from this width
POSITIONS = 16
CONTEXT_SIZE = 4096  # a literal in the host's text encoding
LATENT_CHANNELS = 16
VAE_CHANNELS = 32

CLIP_L, CLIP_G = clip_sizes(hidden_size=32), clip_sizes(hidden_size=64)
T5 = t5_sizes(d_model=CONTEXT_SIZE)


@dataclass(frozen=True)
class Denoiser:
    """Sizes of a denoiser: the width of its tokens, its blocks, the side of its table of positions, the pooled vector."""

    hidden: int = HIDDEN_SIZE
    depth: int = DEPTH
    positions: int = POSITIONS
    pooled: int = CLIP_L["projection_dim"] + CLIP_G["projection_dim"]


TINY = Denoiser()


def shrink_clip(sd3_utils: ModuleType, clip_l: Sizes = CLIP_L, clip_g: Sizes = CLIP_G) -> None:
    """Give both of the host's CLIPs the sizes of the files that `write` makes, or others; it builds one after the other."""
    config = sd3_utils.CLIPTextConfig
    tiny = {768: clip_l, 1280: clip_g}
    sd3_utils.CLIPTextConfig = lambda **sizes: config(**(sizes | tiny[sizes["hidden_size"]]))


def shrink_t5(flux_utils: ModuleType) -> None:
    """Give T5, whose loader SD3 shares with FLUX, the sizes of the file that `write` makes."""
    flux_utils.T5Config = with_sizes(flux_utils.T5Config, T5)


def shrink_vae(sd3_models: ModuleType) -> None:
    """Give the autoencoder the sizes of the checkpoint that `write` makes."""
    sizes = {"ch": VAE_CHANNELS, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1}
    sd3_models.VAEEncoder = with_sizes(sd3_models.VAEEncoder, sizes)
    sd3_models.VAEDecoder = with_sizes(sd3_models.VAEDecoder, sizes)


AFTER_IMPORT = {"library.sd3_utils": shrink_clip, "library.flux_utils": shrink_t5, "library.sd3_models": shrink_vae}


def write_tokenizers(folder: Path) -> None:
    """The tokenizers of CLIP-L, CLIP-G and T5."""
    from tinyhost import tokenizers

    for name in (tokenizers.CLIP_L, tokenizers.CLIP_G):
        tokenizers.save_for_host(tokenizers.clip_tokenizer(), folder, name)
    tokenizers.save_for_host(tokenizers.unigram_tokenizer(), folder, tokenizers.T5)


def arguments(folder: Path) -> tuple[str | Path, ...]:
    return (*file_arguments(folder, "clip_l", "clip_g", "t5xxl"), "--t5xxl_max_token_length", "16")


def write(folder: Path) -> Path:
    """Write a random tiny checkpoint with the denoiser and the VAE, the text encoders beside it, and return its path."""
    from tinyhost import weights

    write_text_encoders(folder)
    vae = autoencoder_weights(ldm_autoencoder((VAE_CHANNELS,) * 4, blocks=1, latent_channels=LATENT_CHANNELS))
    tensors = weights.random_weights({"model": {"diffusion_model": denoiser()}})
    tensors |= {f"first_stage_model.{key}": tensor for key, tensor in vae.items()}
    return weights.save(tensors, folder / "sd3.safetensors")


def write_text_encoders(folder: Path, clip_l: Sizes = CLIP_L, clip_g: Sizes = CLIP_G, t5: Sizes = T5) -> None:
    from tinyhost import models, text_encoders

    with models.seeded(0):
        text_encoders.write_parts(
            folder,
            clip_l=text_encoders.clip_text_model(clip_l, projection=True),
            clip_g=text_encoders.clip_text_model(clip_g, projection=True),
            t5xxl=text_encoders.t5_encoder(t5).half(),
        )


def denoiser(sizes: Denoiser = TINY) -> Tree:
    """MMDiT without query and key norms, as in SD3 medium. The last block's context leads nowhere but into its attention."""
    hidden = sizes.hidden
    last_context = {"attn": {"qkv": linear(hidden, 3 * hidden)}, "adaLN_modulation": modulation(hidden, 2)}
    both = {"x_block": stream(hidden), "context_block": stream(hidden)}
    return {
        "pos_embed": (1, sizes.positions**2, hidden),
        "x_embedder": {"proj": conv(LATENT_CHANNELS, hidden, 2, 2)},
        "t_embedder": {"mlp": [linear(256, hidden), {}, linear(hidden, hidden)]},
        "y_embedder": {"mlp": [linear(sizes.pooled, hidden), {}, linear(hidden, hidden)]},
        "context_embedder": linear(CONTEXT_SIZE, hidden),
        "joint_blocks": [both] * (sizes.depth - 1) + [{"x_block": stream(hidden), "context_block": last_context}],
        "final_layer": {"linear": linear(hidden, 4 * LATENT_CHANNELS), "adaLN_modulation": modulation(hidden, 2)},
    }


def stream(hidden: int) -> Tree:
    return {
        "attn": {"qkv": linear(hidden, 3 * hidden), "proj": linear(hidden, hidden)},
        "mlp": {"fc1": linear(hidden, 4 * hidden), "fc2": linear(4 * hidden, hidden)},
        "adaLN_modulation": modulation(hidden, 6),
    }


def modulation(hidden: int, vectors: int) -> Tree:
    return [{}, linear(hidden, vectors * hidden)]
