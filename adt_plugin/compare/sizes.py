"""Sizes of a model's parts, read from the shapes of the tensors in a file, so that no configuration file is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, Any]
"""Name of a tensor -> anything with a `shape`."""


def block_count(tensors: Shapes, prefix: str) -> int:
    """Return how many numbered blocks there are: one more than the highest number after `prefix`."""
    numbers = {int(name[len(prefix) :].partition(".")[0]) for name in tensors if name.startswith(prefix)}
    return max(numbers, default=-1) + 1


def flux_config(tensors: Shapes) -> dict[str, Any]:
    """Return the configuration of diffusers' `FluxTransformer2DModel`."""
    width, tokens = tensors["img_in.weight"].shape
    head = tensors["double_blocks.0.img_attn.norm.query_norm.scale"].shape[0]
    rotary = head // 16 * 2  # 16, 56, 56 of 128
    return {
        "in_channels": tokens,
        "num_layers": block_count(tensors, "double_blocks."),
        "num_single_layers": block_count(tensors, "single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": tensors["txt_in.weight"].shape[1],
        "pooled_projection_dim": tensors["vector_in.in_layer.weight"].shape[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in tensors,
        "axes_dims_rope": (rotary, (head - rotary) // 2, (head - rotary) // 2),
    }


def sd3_config(tensors: Shapes) -> dict[str, Any]:
    """Return the configuration of diffusers' `SD3Transformer2DModel`; its heads have 64 channels."""
    blocks = block_count(tensors, "joint_blocks.")
    width = tensors["context_embedder.weight"].shape[0]
    with_norms = "joint_blocks.0.x_block.attn.ln_q.weight" in tensors
    return {
        "sample_size": 128,
        "patch_size": tensors["x_embedder.proj.weight"].shape[-1],
        "in_channels": tensors["x_embedder.proj.weight"].shape[1],
        "num_layers": blocks,
        "attention_head_dim": 64,
        "num_attention_heads": width // 64,
        "joint_attention_dim": tensors["context_embedder.weight"].shape[1],
        "caption_projection_dim": width,
        "pooled_projection_dim": tensors["y_embedder.mlp.0.weight"].shape[1],
        "out_channels": tensors["x_embedder.proj.weight"].shape[1],
        "pos_embed_max_size": round(tensors["pos_embed"].shape[1] ** 0.5),
        "dual_attention_layers": tuple(
            block for block in range(blocks) if f"joint_blocks.{block}.x_block.attn2.qkv.weight" in tensors
        ),
        "qk_norm": "rms_norm" if with_norms else None,
    }


def vae_config(tensors: Shapes, scaling: float, shift: float | None) -> dict[str, Any]:
    """Return the configuration of diffusers' `AutoencoderKL` for a file under latent diffusion's names, without prefix."""
    levels = block_count(tensors, "encoder.down.")
    channels = [tensors[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    quantised = "quant_conv.weight" in tensors
    return {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": block_count(tensors, "encoder.down.0.block."),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "scaling_factor": scaling,
        "shift_factor": shift,
        "use_quant_conv": quantised,
        "use_post_quant_conv": quantised,
        "force_upcast": True,
        "sample_size": 1024,
    }


def clip_config(tensors: Shapes) -> dict[str, Any]:
    """Return the configuration of transformers' `CLIPTextConfig`; OpenAI's CLIP-L has another activation than the rest."""
    vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    projection = tensors.get("text_projection.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": block_count(tensors, "text_model.encoder.layers."),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": tensors["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
        "hidden_act": "quick_gelu" if width <= 768 else "gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 1,
    }


def t5_config(tensors: Shapes) -> dict[str, Any]:
    """Return the configuration of transformers' `T5Config` for a T5 1.1 encoder."""
    vocabulary, width = tensors["shared.weight"].shape
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = tensors[f"{attention}.relative_attention_bias.weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": tensors[f"{attention}.q.weight"].shape[0] // heads,
        "d_ff": tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        "num_layers": block_count(tensors, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
