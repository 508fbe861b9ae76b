"""SDXL at its true size: the tensors of the published single-file checkpoint, as a tree for `tinyhost.weights`."""

from __future__ import annotations

from tinyhost.autoencoders import ldm_autoencoder
from tinyhost.weights import Tree, conv, linear, norm

CHANNELS = (320, 640, 1280)
TRANSFORMER_DEPTHS = (0, 2, 10)
TIME_SIZE, SIZE_EMBEDDINGS = 1280, 6 * 256
VOCAB_SIZE, POSITIONS = 49408, 77
CLIP_L_SIZE, CLIP_G_SIZE = 768, 1280


def sdxl() -> Tree:
    vae = {**ldm_autoencoder((128, 256, 512, 512), blocks=2, latent_channels=4)}
    vae |= {"quant_conv": conv(8, 8, 1, 1), "post_quant_conv": conv(4, 4, 1, 1)}
    return {
        "model": {"diffusion_model": unet()},
        "conditioner": {"embedders": [{"transformer": {"text_model": clip_l()}}, {"model": clip_g()}]},
        "first_stage_model": vae,
    }


def unet() -> Tree:
    shallow, middle, deep = CHANNELS
    return {
        "time_embed": [linear(shallow, TIME_SIZE), {}, linear(TIME_SIZE, TIME_SIZE)],
        "label_emb": [[linear(CLIP_G_SIZE + SIZE_EMBEDDINGS, TIME_SIZE), {}, linear(TIME_SIZE, TIME_SIZE)]],
        "input_blocks": [
            [conv(4, shallow, 3, 3)],
            *(level_block(inputs, 0) for inputs in (shallow, shallow)),
            [{"op": conv(shallow, shallow, 3, 3)}],
            *(level_block(inputs, 1) for inputs in (shallow, middle)),
            [{"op": conv(middle, middle, 3, 3)}],
            *(level_block(inputs, 2) for inputs in (middle, deep)),
        ],
        "middle_block": [*level_block(deep, 2), residual_block(deep, deep)],
        "output_blocks": [
            *(level_block(inputs, 2) for inputs in (deep + deep, deep + deep)),
            [*level_block(deep + middle, 2), {"conv": conv(deep, deep, 3, 3)}],
            *(level_block(inputs, 1) for inputs in (deep + middle, middle + middle)),
            [*level_block(middle + shallow, 1), {"conv": conv(middle, middle, 3, 3)}],
            *(level_block(inputs, 0) for inputs in (middle + shallow, shallow + shallow, shallow + shallow)),
        ],
        "out": [norm(shallow), {}, conv(shallow, 4, 3, 3)],
    }


def level_block(inputs: int, level: int) -> list[Tree]:
    """A residual block, and a transformer where the level has one."""
    channels, depth = CHANNELS[level], TRANSFORMER_DEPTHS[level]
    return [residual_block(inputs, channels), *([transformer(channels, depth)] if depth else [])]


def residual_block(inputs: int, outputs: int) -> Tree:
    tree = {
        "in_layers": [norm(inputs), {}, conv(inputs, outputs, 3, 3)],
        "emb_layers": [{}, linear(TIME_SIZE, outputs)],
        "out_layers": [norm(outputs), {}, {}, conv(outputs, outputs, 3, 3)],
    }
    return tree | ({"skip_connection": conv(inputs, outputs, 1, 1)} if inputs != outputs else {})


def transformer(channels: int, depth: int) -> Tree:
    block = {
        "attn1": attention(channels, channels),
        "attn2": attention(channels, CLIP_L_SIZE + CLIP_G_SIZE),
        "ff": {"net": [{"proj": linear(channels, 8 * channels)}, {}, linear(4 * channels, channels)]},
        **{name: norm(channels) for name in ("norm1", "norm2", "norm3")},
    }
    return {
        "norm": norm(channels),
        "proj_in": linear(channels, channels),
        "transformer_blocks": [block] * depth,
        "proj_out": linear(channels, channels),
    }


def attention(channels: int, context_size: int) -> Tree:
    return {
        "to_q": linear(channels, channels, bias=False),
        "to_k": linear(context_size, channels, bias=False),
        "to_v": linear(context_size, channels, bias=False),
        "to_out": [linear(channels, channels)],
    }


def clip_l() -> Tree:
    """In the layout of transformers."""
    size = CLIP_L_SIZE
    layer = {
        "self_attn": {f"{name}_proj": linear(size, size) for name in ("q", "k", "v", "out")},
        "mlp": {"fc1": linear(size, 4 * size), "fc2": linear(4 * size, size)},
        "layer_norm1": norm(size),
        "layer_norm2": norm(size),
    }
    return {
        "embeddings": {
            "token_embedding": {"weight": (VOCAB_SIZE, size)},
            "position_embedding": {"weight": (POSITIONS, size)},
        },
        "encoder": {"layers": [layer] * 12},
        "final_layer_norm": norm(size),
    }


def clip_g() -> Tree:
    """In the layout of OpenCLIP."""
    size = CLIP_G_SIZE
    block = {
        "attn": {"in_proj_weight": (3 * size, size), "in_proj_bias": (3 * size,), "out_proj": linear(size, size)},
        "mlp": {"c_fc": linear(size, 4 * size), "c_proj": linear(4 * size, size)},
        "ln_1": norm(size),
        "ln_2": norm(size),
    }
    return {
        "token_embedding": {"weight": (VOCAB_SIZE, size)},
        "positional_embedding": (POSITIONS, size),
        "transformer": {"resblocks": [block] * 32},
        "ln_final": norm(size),
        "text_projection": (size, size),
        "logit_scale": (),
    }
