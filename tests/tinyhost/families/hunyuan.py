"""HunyuanImage 2.1: `hunyuan_image_train_network.py`.

All sizes are literals in the host, so that its modules' text is what is changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tinyhost.autoencoders import autoencoder_weights, middle, residual_block
from tinyhost.families import depth, file_arguments
from tinyhost.text_encoders import own_tensors, with_sizes
from tinyhost.tokenizers import QWEN2_BYTE_VOCAB_SIZE
from tinyhost.weights import Tree, conv, linear, norm, rms_norm

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SCRIPTS = ("hunyuan_image_train_network.py",)
NETWORK_MODULE = "networks.lora_hunyuan_image"

DEPTH = depth()
HIDDEN_SIZE, HEADS = 64, 2
HEAD_SIZE = HIDDEN_SIZE // HEADS
LATENT_CHANNELS = 64
VAE_CHANNELS = (32, 32, 32, 32, 64, 128)  # the last twice the latents' at least
TEXT_SIZE = 32
GLYPH_SIZE, GLYPH_HIDDEN_SIZE = 1472, 64  # the first a literal of the text encoding, too

QWEN_TEXT = {
    "vocab_size": QWEN2_BYTE_VOCAB_SIZE,
    "hidden_size": TEXT_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": 3,  # the host takes the third output from the end
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]},
    "initializer_range": 0.3,
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": TEXT_SIZE,
    "fullatt_block_indexes": [0],
}
QWEN = {"text_config": QWEN_TEXT, "vision_config": QWEN_VISION, **QWEN_TEXT}
BYT5 = {"d_model": GLYPH_SIZE, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
BYT5_VOCAB_SIZE = 1510  # with the host's tokens for colours and fonts

DENOISER_LITERALS = {
    "self.hidden_size = 3584": f"self.hidden_size = {HIDDEN_SIZE}",
    "self.heads_num = 28": f"self.heads_num = {HEADS}",
    "self.rope_dim_list = [64, 64]": f"self.rope_dim_list = [{HEAD_SIZE // 2}, {HEAD_SIZE // 2}]",
    "mm_double_blocks_depth = 20": f"mm_double_blocks_depth = {DEPTH}",
    "mm_single_blocks_depth = 40": f"mm_single_blocks_depth = {DEPTH}",
    "text_states_dim = 3584": f"text_states_dim = {TEXT_SIZE}",
    "out_dim=2048, hidden_dim=2048": f"out_dim={GLYPH_HIDDEN_SIZE}, hidden_dim={GLYPH_HIDDEN_SIZE}",
}
VAE_LITERALS = {
    "block_out_channels = (128, 256, 512, 512, 1024, 1024)": f"block_out_channels = {VAE_CHANNELS}",
    "layers_per_block = 2": "layers_per_block = 1",
}


def shrink_denoiser(hunyuan_image_models: ModuleType) -> None:
    """Give the denoiser the sizes of the checkpoint that `write` makes."""
    execute_with(hunyuan_image_models, DENOISER_LITERALS)


def shrink_vae(hunyuan_image_vae: ModuleType) -> None:
    """Give the autoencoder the sizes of the file that `write` makes."""
    execute_with(hunyuan_image_vae, VAE_LITERALS)


def execute_with(module: ModuleType, literals: Mapping[str, str]) -> None:
    """Execute the module's text again with other literals. Raises ValueError unless each occurs exactly once."""
    source = Path(module.__file__).read_text(encoding="utf-8-sig")
    for old, new in literals.items():
        if source.count(old) != 1:
            raise ValueError(f"{module.__file__} has {source.count(old)} lines with {old!r} to shrink, not 1")
        source = source.replace(old, new)
    exec(compile(source, module.__file__, "exec"), vars(module))


def shrink_text_encoders(hunyuan_image_text_encoder: ModuleType) -> None:
    """Give Qwen2.5-VL and ByT5 the sizes of the files that `write` makes.

    Qwen2.5-VL is loaded in fp32, not bf16: its outputs would not fit the denoiser's weights in a run without mixed precision,
    which the host cannot do at all and tests need for exact comparisons.
    """
    precision = {"dtype": hunyuan_image_text_encoder.torch.float32}
    changes = (("Qwen2_5_VLConfig", QWEN), ("T5Config", BYT5), ("load_qwen2_5_vl", precision))
    for name, keywords in changes:
        setattr(hunyuan_image_text_encoder, name, with_sizes(getattr(hunyuan_image_text_encoder, name), keywords))


AFTER_IMPORT = {
    "library.hunyuan_image_models": shrink_denoiser,
    "library.hunyuan_image_vae": shrink_vae,
    "library.hunyuan_image_text_encoder": shrink_text_encoders,
}


def write_tokenizers(folder: Path) -> None:
    """The tokenizers of Qwen2.5-VL and ByT5."""
    from transformers import ByT5Tokenizer

    from tinyhost import tokenizers

    tokenizers.save_for_host(tokenizers.qwen2_tokenizer(), folder, "Qwen/Qwen2.5-VL-7B-Instruct")
    tokenizers.save_for_host(ByT5Tokenizer(), folder, "google/byt5-small")


def arguments(folder: Path) -> tuple[str | Path, ...]:
    return (*file_arguments(folder, "vae", "text_encoder", "byt5"), "--network_train_unet_only", "--timestep_sampling", "shift")


def write(folder: Path) -> Path:
    """Write a random tiny HunyuanImage, its text encoders and its autoencoder, and return the denoiser's path."""
    from tinyhost import models, text_encoders, weights

    with models.seeded(0):
        byt5 = text_encoders.t5_encoder({"vocab_size": BYT5_VOCAB_SIZE, **BYT5})
        weights.save(published_keys(qwen()), folder / "text_encoder.safetensors")
    text_encoders.write_parts(folder, byt5=byt5.half())
    weights.save(autoencoder_weights(autoencoder()), folder / "vae.safetensors")
    return weights.save(weights.random_weights(denoiser()), folder / "hunyuan.safetensors")


def qwen() -> PreTrainedModel:
    """A random Qwen2.5-VL."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # version 5 of transformers calls `rope_scaling` otherwise
        config = Qwen2_5_VLConfig(**QWEN)
    return Qwen2_5_VLForConditionalGeneration(config)


def published_keys(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights under the keys of the published file, of an older layout than that of today's transformers."""
    tensors = own_tensors(model)
    old = {key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): key for key in tensors}
    return {name: tensors[key] for name, key in old.items()}


def denoiser() -> Tree:
    return {
        "byt5_in": {
            "layernorm": norm(GLYPH_SIZE),
            "fc1": linear(GLYPH_SIZE, GLYPH_HIDDEN_SIZE),
            "fc2": linear(GLYPH_HIDDEN_SIZE, GLYPH_HIDDEN_SIZE),
            "fc3": linear(GLYPH_HIDDEN_SIZE, HIDDEN_SIZE),
        },
        "img_in": {"proj": conv(LATENT_CHANNELS, HIDDEN_SIZE, 1, 1)},
        "txt_in": {
            "input_embedder": linear(TEXT_SIZE, HIDDEN_SIZE),
            "t_embedder": timestep_embedder(),
            "c_embedder": {"linear_1": linear(TEXT_SIZE, HIDDEN_SIZE), "linear_2": linear(HIDDEN_SIZE, HIDDEN_SIZE)},
            "individual_token_refiner": {"blocks": [refiner_block() for _ in range(2)]},
        },
        "time_in": timestep_embedder(),
        "double_blocks": [{**stream("img"), **stream("txt")} for _ in range(DEPTH)],
        "single_blocks": [single_block() for _ in range(DEPTH)],
        "final_layer": {
            "linear": linear(HIDDEN_SIZE, LATENT_CHANNELS),
            "adaLN_modulation": [{}, linear(HIDDEN_SIZE, 2 * HIDDEN_SIZE)],
        },
    }


def timestep_embedder() -> Tree:
    return {"mlp": [linear(256, HIDDEN_SIZE), {}, linear(HIDDEN_SIZE, HIDDEN_SIZE)]}


def mlp() -> Tree:
    return {"fc1": linear(HIDDEN_SIZE, 4 * HIDDEN_SIZE), "fc2": linear(4 * HIDDEN_SIZE, HIDDEN_SIZE)}


def refiner_block() -> Tree:
    return {
        "norm1": norm(HIDDEN_SIZE),
        "self_attn_qkv": linear(HIDDEN_SIZE, 3 * HIDDEN_SIZE),
        "self_attn_proj": linear(HIDDEN_SIZE, HIDDEN_SIZE),
        "norm2": norm(HIDDEN_SIZE),
        "mlp": mlp(),
        "adaLN_modulation": [{}, linear(HIDDEN_SIZE, 2 * HIDDEN_SIZE)],
    }


def stream(name: str) -> Tree:
    return {
        f"{name}_mod": {"linear": linear(HIDDEN_SIZE, 6 * HIDDEN_SIZE)},
        f"{name}_attn_qkv": linear(HIDDEN_SIZE, 3 * HIDDEN_SIZE),
        f"{name}_attn_q_norm": rms_norm(HEAD_SIZE),
        f"{name}_attn_k_norm": rms_norm(HEAD_SIZE),
        f"{name}_attn_proj": linear(HIDDEN_SIZE, HIDDEN_SIZE),
        f"{name}_mlp": mlp(),
    }


def single_block() -> Tree:
    return {
        "linear1": linear(HIDDEN_SIZE, 7 * HIDDEN_SIZE),
        "linear2": linear(5 * HIDDEN_SIZE, HIDDEN_SIZE),
        "q_norm": rms_norm(HEAD_SIZE),
        "k_norm": rms_norm(HEAD_SIZE),
        "modulation": {"linear": linear(HIDDEN_SIZE, 3 * HIDDEN_SIZE)},
    }


def autoencoder() -> Tree:
    """32 pixels to one latent; the width changes in the resampling layers, which fold 2x2 pixels into channels or back."""
    shallowest, deepest = VAE_CHANNELS[0], VAE_CHANNELS[-1]
    steps = list(zip(VAE_CHANNELS, VAE_CHANNELS[1:], strict=False))
    down: list[Any] = [
        {"block": [residual_block(width, width)], "downsample": {"conv": conv(width, deeper // 4, 3, 3)}}
        for width, deeper in steps
    ]
    up: list[Any] = [
        {"block": [residual_block(width, width)] * 2, "upsample": {"conv": conv(width, 4 * shallower, 3, 3)}}
        for shallower, width in reversed(steps)
    ]
    return {
        "encoder": {
            "conv_in": conv(3, shallowest, 3, 3),
            "down": [*down, {"block": [residual_block(deepest, deepest)]}],
            "mid": middle(deepest),
            "norm_out": norm(deepest),
            "conv_out": conv(deepest, 2 * LATENT_CHANNELS, 3, 3),
        },
        "decoder": {
            "conv_in": conv(LATENT_CHANNELS, deepest, 3, 3),
            "mid": middle(deepest),
            "up": [*up, {"block": [residual_block(shallowest, shallowest)] * 2}],
            "norm_out": norm(shallowest),
            "conv_out": conv(shallowest, 3, 3, 3),
        },
    }
