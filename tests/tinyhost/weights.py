"""Random checkpoints of the host's own model classes, from a description of their keys and shapes.

A tree of dicts and lists stands for nested modules, a tuple of sizes for a tensor: `{"mlp": [linear(4, 8), {}, linear(8, 4)]}`
describes `mlp.0.weight`, `mlp.0.bias`, `mlp.2.weight` and `mlp.2.bias`.
"""

from __future__ import annotations

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
    """Normalisations scale by 1; biases are N(0, 0.02^2), other weights N(0, 1 / number of inputs), embeddings N(0, 1)."""
    import torch

    name = key.rpartition(".")[-1]
    if name in SCALES and prod(shape) == shape[0]:
        return torch.ones(shape)
    std = {"bias": 0.02, "weight": prod(shape[1:]) ** -0.5}.get(name, 1.0)
    return torch.randn(shape, generator=generator) * std


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Write one .safetensors file; tensors that share memory are written once each."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    return path
