"""SD3: `sd3_train_network.py`, `sd3_train.py`.

The host reads the sizes of the denoiser from the checkpoint; those of the text encoders and of the VAE are literals.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tinyhost.autoencoders import autoencoder_weights, ldm_autoencoder
from tinyhost.families import depth, file_arguments
from tinyhost.text_encoders import clip_sizes, t5_sizes, with_sizes
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


def shrink_clip(sd3_utils: ModuleType) -> None:
    """Give both of the host's CLIPs the sizes of the files that `write` makes; it builds them one after the other."""
    config = sd3_utils.CLIPTextConfig
    tiny = {768: CLIP_L, 1280: CLIP_G}
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
    from tinyhost import models, text_encoders, weights

    with models.seeded(0):
        text_encoders.write_parts(
            folder,
            clip_l=text_encoders.clip_text_model(CLIP_L, projection=True),
            clip_g=text_encoders.clip_text_model(CLIP_G, projection=True),
            t5xxl=text_encoders.t5_encoder(T5).half(),
        )
    vae = autoencoder_weights(ldm_autoencoder((VAE_CHANNELS,) * 4, blocks=1, latent_channels=LATENT_CHANNELS))
    tensors = weights.random_weights({"model": {"diffusion_model": denoiser()}})
    tensors |= {f"first_stage_model.{key}": tensor for key, tensor in vae.items()}
    return weights.save(tensors, folder / "sd3.safetensors")


def denoiser() -> Tree:
    """MMDiT without query and key norms, as in SD3 medium. The last block's context leads nowhere but into its attention."""
    pooled = CLIP_L["projection_dim"] + CLIP_G["projection_dim"]
    last_context = {"attn": {"qkv": linear(HIDDEN_SIZE, 3 * HIDDEN_SIZE)}, "adaLN_modulation": modulation(2)}
    return {
        "pos_embed": (1, POSITIONS**2, HIDDEN_SIZE),
        "x_embedder": {"proj": conv(LATENT_CHANNELS, HIDDEN_SIZE, 2, 2)},
        "t_embedder": {"mlp": [linear(256, HIDDEN_SIZE), {}, linear(HIDDEN_SIZE, HIDDEN_SIZE)]},
        "y_embedder": {"mlp": [linear(pooled, HIDDEN_SIZE), {}, linear(HIDDEN_SIZE, HIDDEN_SIZE)]},
        "context_embedder": linear(CONTEXT_SIZE, HIDDEN_SIZE),
        "joint_blocks": [
            *({"x_block": stream(), "context_block": stream()} for _ in range(DEPTH - 1)),
            {"x_block": stream(), "context_block": last_context},
        ],
        "final_layer": {"linear": linear(HIDDEN_SIZE, 4 * LATENT_CHANNELS), "adaLN_modulation": modulation(2)},
    }


def stream() -> Tree:
    return {
        "attn": {"qkv": linear(HIDDEN_SIZE, 3 * HIDDEN_SIZE), "proj": linear(HIDDEN_SIZE, HIDDEN_SIZE)},
        "mlp": {"fc1": linear(HIDDEN_SIZE, 4 * HIDDEN_SIZE), "fc2": linear(4 * HIDDEN_SIZE, HIDDEN_SIZE)},
        "adaLN_modulation": modulation(6),
    }


def modulation(vectors: int) -> Tree:
    return [{}, linear(HIDDEN_SIZE, vectors * HIDDEN_SIZE)]
