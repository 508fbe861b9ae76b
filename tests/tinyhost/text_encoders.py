"""Text encoders: the sizes that both processes know, and random weights in the host's single-file format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyhost import weights
from tinyhost.tokenizers import CLIP_BYTE_VOCAB_SIZE, UNIGRAM_VOCAB_SIZE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Sizes = dict[str, Any]


def with_sizes(build: Callable[..., Any], sizes: Sizes) -> Callable[..., Any]:
    """`build` with `sizes` in place of the keyword arguments of the same names."""

    def build_with_sizes(*args: Any, **keywords: Any) -> Any:
        return build(*args, **(keywords | sizes))

    return build_with_sizes


def clip_sizes(hidden_size: int, layers: int = 2, heads: int = 2, vocab_size: int = CLIP_BYTE_VOCAB_SIZE) -> Sizes:
    """Sizes of a CLIP text encoder for the byte vocabulary, whose special tokens are its last two ids."""
    start, end = CLIP_BYTE_VOCAB_SIZE - 2, CLIP_BYTE_VOCAB_SIZE - 1
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "projection_dim": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def clip_text_model(sizes: Sizes, projection: bool = False) -> PreTrainedModel:
    """A random CLIP text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(CLIPTextConfig(**sizes))


def t5_sizes(d_model: int) -> Sizes:
    """Sizes of a T5 encoder of one layer for the unigram vocabulary."""
    return {"vocab_size": UNIGRAM_VOCAB_SIZE, "d_model": d_model, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def t5_encoder(sizes: Sizes) -> PreTrainedModel:
    """A random T5 encoder with the gated feed-forward of T5 1.1."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **sizes))


def write_parts(folder: Path, **parts: PreTrainedModel) -> None:
    """Write each model's weights as `<folder>/<name>.safetensors`."""
    for name, model in parts.items():
        weights.save(own_tensors(model), folder / f"{name}.safetensors")


def own_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights under published names, also those that the model shares between two places, once for each."""
    flat = type(model).__name__ == "CLIPTextModel" and not hasattr(model, "text_model")  # since transformers 5
    return {f"{'text_model.' * flat}{key}": tensor.clone() for key, tensor in model.state_dict().items()}
