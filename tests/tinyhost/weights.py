"""Random checkpoints of the host's own model classes, from a description of their keys and shapes.

A tree of dicts and lists stands for nested modules, a tuple of sizes for a tensor: `{"mlp": [linear(4, 8), {}, linear(8, 4)]}`
describes `mlp.0.weight`, `mlp.0.bias`, `mlp.2.weight` and `mlp.2.bias`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tree = Mapping[str, Any] | Sequence[Any]

SCALES = ("weight", "scale", "gamma")


def linear(inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {"weight": (outputs, inputs), **({"bias": (outputs,)} if bias else {})}


def conv(inputs: int, outputs: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (outputs, inputs, *kernel), "bias": (outputs,)}


def norm(size: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (size,), "bias": (size,)}


def rms_norm(size: int, name: str = "weight") -> dict[str, tuple[int, ...]]:
    return {name: (size,)}


def tensor_shapes(tree: Tree, prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """(key, shape) of every tensor of `tree`; its lists count from 0."""
    children = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for name, child in children:
        if isinstance(child, tuple):
            yield f"{prefix}{name}", child
        else:
            yield from tensor_shapes(child, f"{prefix}{name}.")


def random_weights(tree: Tree, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights under which every layer keeps the scale of its input, and none is zero.

    The layers that published models start from zero (modulations and outputs) are random as well, so that a denoiser's
    output and the gradients of all its weights differ from zero.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {key: random_tensor(key, shape, generator) for key, shape in tensor_shapes(tree)}


def random_tensor(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normalisations scale by 1; biases are N(0, 0.02^2), tables of embeddings N(0, 1), the others N(0, 1 / inputs)."""
    import torch

    name = key.rpartition(".")[-1]
    if name in SCALES and shape[:1] == (prod(shape),):
        return torch.ones(shape)
    std = 1.0 if "embed" in name else 0.02 if name.endswith("bias") else prod(shape[1:]) ** -0.5
    return torch.randn(shape, generator=generator) * std


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Write one .safetensors file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path)
    return path


def save_random(tree: Tree, path: Path, seed: int = 0) -> Path:
    """Write `random_weights` in bf16, one tensor after the other, so that the file may be larger than the memory."""
    import torch

    header: dict[str, dict[str, Any]] = {}
    offset = 0
    for key, shape in tensor_shapes(tree):
        end = offset + prod(shape) * torch.bfloat16.itemsize
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, shape in tensor_shapes(tree):
            tensor = random_tensor(key, shape, generator).to(torch.bfloat16)
            file.write(tensor.flatten().view(torch.uint8).numpy())
    return path
