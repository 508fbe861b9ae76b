"""Anima: `anima_train_network.py`, `anima_train.py`.

The host takes the text encoder from a folder as it is; the sizes of the denoiser and of the VAE are arguments of their classes.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tinyhost.autoencoders import autoencoder_weights
from tinyhost.families import depth, file_arguments
from tinyhost.text_encoders import with_sizes
from tinyhost.tokenizers import UNIGRAM_VOCAB_SIZE
from tinyhost.weights import Tree, conv, linear, rms_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCRIPTS = ("anima_train_network.py", "anima_train.py")
NETWORK_MODULE = "networks.lora_anima"

DEPTH = depth()
HIDDEN_SIZE, HEADS, MODULATION_SIZE = 64, 2, 16
TEXT_SIZE = 32
ADAPTER_HEADS = 2
ADAPTER_VOCAB_SIZE = 32128  # a literal in the host
LATENT_CHANNELS = 16
VAE_CHANNELS = 32
VAE_LEVELS = 4

QWEN3 = {
    "vocab_size": UNIGRAM_VOCAB_SIZE,
    "hidden_size": TEXT_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
DENOISER_SIZES = {
    "model_channels": HIDDEN_SIZE,
    "num_blocks": DEPTH,
    "num_heads": HEADS,
    "adaln_lora_dim": MODULATION_SIZE,
    "crossattn_emb_channels": TEXT_SIZE,
    "max_img_h": 64,
    "max_img_w": 64,
}
ADAPTER_SIZES = {
    "source_dim": TEXT_SIZE,
    "target_dim": TEXT_SIZE,
    "model_dim": TEXT_SIZE,
    "num_layers": 1,
    "num_heads": ADAPTER_HEADS,
}
VAE_SIZES = {"base_dim": VAE_CHANNELS, "dim_mult": [1] * VAE_LEVELS, "num_res_blocks": 1}


def shrink_denoiser(anima_models: ModuleType) -> None:
    """Give the denoiser and the adapter inside it the sizes of the checkpoint that `write` makes."""
    for model, sizes in ((anima_models.Anima, DENOISER_SIZES), (anima_models.LLMAdapter, ADAPTER_SIZES)):
        model.__init__ = with_sizes(model.__init__, sizes)


def shrink_vae(qwen_image_autoencoder_kl: ModuleType) -> None:
    """Give the autoencoder the sizes of the file that `write` makes."""
    model = qwen_image_autoencoder_kl.AutoencoderKLQwenImage
    model.__init__ = with_sizes(model.__init__, VAE_SIZES)


def shrink_vae_2d(qwen_image_autoencoder_kl_2d: ModuleType) -> None:
    """The same for the autoencoder without a time axis, which v0.11 has and makes from the same file."""
    model = qwen_image_autoencoder_kl_2d.AutoencoderKLQwenImage2D
    model.__init__ = with_sizes(model.__init__, VAE_SIZES)


AFTER_IMPORT = {
    "library.anima_models": shrink_denoiser,
    "library.qwen_image_autoencoder_kl": shrink_vae,
    "library.qwen_image_autoencoder_kl_2d": shrink_vae_2d,
}


def write_tokenizers(folder: Path) -> None:
    """None: this family's scripts take their tokenizers from the folders among `arguments`."""


def arguments(folder: Path) -> tuple[str | Path, ...]:
    text = ("--qwen3", folder / "qwen3", "--t5_tokenizer_path", folder / "t5_tokenizer")
    lengths = ("--qwen3_max_token_length", "16", "--t5_max_token_length", "16")
    # Without an attention mode `anima_train.py` stops.
    return (*file_arguments(folder, "vae"), *text, *lengths, "--attn_mode", "torch")


def write(folder: Path) -> Path:
    """Write a random tiny Anima, its text encoder, tokenizers and autoencoder, and return the denoiser's path."""
    from tinyhost import models, tokenizers, weights

    with models.seeded(0):
        qwen3().save_pretrained(folder / "qwen3")
    for name in ("qwen3", "t5_tokenizer"):
        tokenizers.unigram_tokenizer().save_pretrained(folder / name)
    weights.save(autoencoder_weights(autoencoder(), moments="quant_conv"), folder / "vae.safetensors")
    return weights.save(weights.random_weights({"net": denoiser()}), folder / "anima.safetensors")


def qwen3() -> PreTrainedModel:
    """A random Qwen3."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**QWEN3))


def denoiser() -> Tree:
    """Cosmos-Predict2's transformer with the adapter from Qwen3's outputs to T5's."""
    patch_size = 4 * (LATENT_CHANNELS + 1)  # 2x2 latents and the padding mask
    return {
        "x_embedder": {"proj": [{}, linear(patch_size, HIDDEN_SIZE, bias=False)]},
        "t_embedder": [
            {},
            {
                "linear_1": linear(HIDDEN_SIZE, HIDDEN_SIZE, bias=False),
                "linear_2": linear(HIDDEN_SIZE, 3 * HIDDEN_SIZE, bias=False),
            },
        ],
        "t_embedding_norm": rms_norm(HIDDEN_SIZE),
        "llm_adapter": adapter(),
        "blocks": [block() for _ in range(DEPTH)],
        "final_layer": {
            "linear": linear(HIDDEN_SIZE, 4 * LATENT_CHANNELS, bias=False),
            "adaln_modulation": modulation(2),
        },
    }


def block() -> Tree:
    return {
        "self_attn": attention(HIDDEN_SIZE, HIDDEN_SIZE, HEADS, "output_proj"),
        "cross_attn": attention(HIDDEN_SIZE, TEXT_SIZE, HEADS, "output_proj"),
        "mlp": {
            "layer1": linear(HIDDEN_SIZE, 4 * HIDDEN_SIZE, bias=False),
            "layer2": linear(4 * HIDDEN_SIZE, HIDDEN_SIZE, bias=False),
        },
        **{f"adaln_modulation_{name}": modulation(3) for name in ("self_attn", "cross_attn", "mlp")},
    }


def modulation(vectors: int) -> Tree:
    low_rank = linear(HIDDEN_SIZE, MODULATION_SIZE, bias=False)
    return [{}, low_rank, linear(MODULATION_SIZE, vectors * HIDDEN_SIZE, bias=False)]


def attention(size: int, context_size: int, heads: int, output: str) -> Tree:
    inputs = {"q_proj": size, "k_proj": context_size, "v_proj": context_size, output: size}
    projections = {name: linear(width, size, bias=False) for name, width in inputs.items()}
    return {**projections, "q_norm": rms_norm(size // heads), "k_norm": rms_norm(size // heads)}


def adapter() -> Tree:
    layer = {
        "self_attn": attention(TEXT_SIZE, TEXT_SIZE, ADAPTER_HEADS, "o_proj"),
        "cross_attn": attention(TEXT_SIZE, TEXT_SIZE, ADAPTER_HEADS, "o_proj"),
        "mlp": [linear(TEXT_SIZE, 4 * TEXT_SIZE), {}, linear(4 * TEXT_SIZE, TEXT_SIZE)],
        **{f"norm_{name}": rms_norm(TEXT_SIZE) for name in ("self_attn", "cross_attn", "mlp")},
    }
    return {
        "embed": {"weight": (ADAPTER_VOCAB_SIZE, TEXT_SIZE)},
        "blocks": [layer],
        "out_proj": linear(TEXT_SIZE, TEXT_SIZE),
        "norm": rms_norm(TEXT_SIZE),
    }


def autoencoder() -> Tree:
    """Qwen-Image's autoencoder: a video model, so that its convolutions have a time axis, all levels of one width."""
    width = VAE_CHANNELS
    middle = {"attentions": [video_attention()], "resnets": [residual_block(width, width)] * 2}
    down = [residual_block(width, width)]
    for level in range(VAE_LEVELS - 1):
        down += [resample(width, width, time=level > 0, time_channels=width), residual_block(width, width)]
    return {
        "encoder": {
            "conv_in": conv(3, width, 3, 3, 3),
            "down_blocks": down,
            "mid_block": middle,
            "norm_out": {"gamma": (width, 1, 1, 1)},
            "conv_out": conv(width, 2 * LATENT_CHANNELS, 3, 3, 3),
        },
        "quant_conv": conv(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1, 1, 1),
        "post_quant_conv": conv(LATENT_CHANNELS, LATENT_CHANNELS, 1, 1, 1),
        "decoder": {
            "conv_in": conv(LATENT_CHANNELS, width, 3, 3, 3),
            "mid_block": middle,
            "up_blocks": [up_level(level) for level in range(VAE_LEVELS)],
            "norm_out": {"gamma": (width, 1, 1, 1)},
            "conv_out": conv(width, 3, 3, 3, 3),
        },
    }


def up_level(level: int) -> Tree:
    """Two residual blocks, and between the levels an upsampling that halves the width; the last one is in space only."""
    width = VAE_CHANNELS
    resnets = [residual_block(width if level == 0 else width // 2, width), residual_block(width, width)]
    if level == VAE_LEVELS - 1:
        return {"resnets": resnets}
    upsampler = resample(width, width // 2, time=level < VAE_LEVELS - 2, time_channels=2 * width)
    return {"resnets": resnets, "upsamplers": [upsampler]}


def resample(inputs: int, outputs: int, time: bool, time_channels: int) -> Tree:
    tree: dict[str, Tree] = {"resample": [{}, conv(inputs, outputs, 3, 3)]}
    return tree | ({"time_conv": conv(inputs, time_channels, 3, 1, 1)} if time else {})


def residual_block(inputs: int, outputs: int) -> Tree:
    tree = {
        "norm1": {"gamma": (inputs, 1, 1, 1)},
        "conv1": conv(inputs, outputs, 3, 3, 3),
        "norm2": {"gamma": (outputs, 1, 1, 1)},
        "conv2": conv(outputs, outputs, 3, 3, 3),
    }
    return tree | ({"conv_shortcut": conv(inputs, outputs, 1, 1, 1)} if inputs != outputs else {})


def video_attention() -> Tree:
    width = VAE_CHANNELS
    return {"norm": {"gamma": (width, 1, 1)}, "to_qkv": conv(width, 3 * width, 1, 1), "proj": conv(width, width, 1, 1)}
