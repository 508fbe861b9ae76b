"""Autoencoders in the format of latent diffusion's original code, as trees for `tinyhost.weights`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyhost.weights import Tree, conv, norm, random_weights

if TYPE_CHECKING:
    import torch

LOG_VARIANCE = -20.0


def autoencoder_weights(tree: Tree, moments: str = "encoder.conv_out") -> dict[str, torch.Tensor]:
    """Random weights under which the encoder is all but deterministic, as a trained one is.

    `moments` is the layer whose outputs are the means and the log variances of the latents.
    """
    tensors = random_weights(tree)
    weight, bias = tensors[f"{moments}.weight"], tensors[f"{moments}.bias"]
    means = len(bias) // 2
    weight[means:] = 0
    bias[means:] = LOG_VARIANCE
    return tensors


def ldm_autoencoder(channels: Sequence[int], blocks: int, latent_channels: int) -> Tree:
    """Encoder and decoder of SD3 and FLUX, and of SDXL but for its two quantisation layers.

    `channels` are those of the resolutions from the pixels down to the latents, with `blocks` residual blocks at each.
    """
    deepest = channels[-1]
    return {
        "encoder": {
            "conv_in": conv(3, channels[0], 3, 3),
            "down": [down_level(channels, level, blocks) for level in range(len(channels))],
            "mid": middle(deepest),
            "norm_out": norm(deepest),
            "conv_out": conv(deepest, 2 * latent_channels, 3, 3),
        },
        "decoder": {
            "conv_in": conv(latent_channels, deepest, 3, 3),
            "mid": middle(deepest),
            "up": [up_level(channels, level, blocks) for level in range(len(channels))],
            "norm_out": norm(channels[0]),
            "conv_out": conv(channels[0], 3, 3, 3),
        },
    }


def down_level(channels: Sequence[int], level: int, blocks: int) -> Tree:
    inputs, outputs = channels[max(level - 1, 0)], channels[level]
    tree = {"block": [residual_block(inputs if i == 0 else outputs, outputs) for i in range(blocks)]}
    return tree | ({"downsample": {"conv": conv(outputs, outputs, 3, 3)}} if level < len(channels) - 1 else {})


def up_level(channels: Sequence[int], level: int, blocks: int) -> Tree:
    inputs, outputs = channels[min(level + 1, len(channels) - 1)], channels[level]
    tree = {"block": [residual_block(inputs if i == 0 else outputs, outputs) for i in range(blocks + 1)]}
    return tree | ({"upsample": {"conv": conv(outputs, outputs, 3, 3)}} if level > 0 else {})


def middle(channels: int) -> Tree:
    attention = {name: conv(channels, channels, 1, 1) for name in ("q", "k", "v", "proj_out")}
    block = residual_block(channels, channels)
    return {"block_1": block, "attn_1": {"norm": norm(channels), **attention}, "block_2": block}


def residual_block(inputs: int, outputs: int) -> Tree:
    tree = {
        "norm1": norm(inputs),
        "conv1": conv(inputs, outputs, 3, 3),
        "norm2": norm(outputs),
        "conv2": conv(outputs, outputs, 3, 3),
    }
    return tree | ({"nin_shortcut": conv(inputs, outputs, 1, 1)} if inputs != outputs else {})
