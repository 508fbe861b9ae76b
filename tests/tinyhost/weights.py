"""Random checkpoints of the host's own model classes, from a description of their keys and shapes.

A tree of dicts and lists stands for nested modules, a tuple of sizes for a tensor: `{"mlp": [linear(4, 8), {}, linear(8, 4)]}`
describes `mlp.0.weight`, `mlp.0.bias`, `mlp.2.weight` and `mlp.2.bias`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tree = Mapping[str, Any] | Sequence[Any]

SCALES = ("weight", "scale", "gamma")

FORMATS = {"torch.bfloat16": "BF16", "torch.float8_e4m3fn": "F8_E4M3"}
"""What a .safetensors file calls the dtypes."""

POOL = 2**24 - 3
"""Numbers that `save_random` draws; no multiple of a layer's width."""


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
    """A tensor with the deviation of `deviation`; ones where that is None."""
    import torch

    std = deviation(key, shape)
    return torch.ones(shape) if std is None else torch.randn(shape, generator=generator) * std


def deviation(key: str, shape: tuple[int, ...]) -> float | None:
    """Normalisations scale by 1 (None); biases are N(0, 0.02^2), tables of embeddings N(0, 1), the others N(0, 1 / inputs)."""
    name = key.rpartition(".")[-1]
    if name in SCALES and shape[:1] == (prod(shape),):
        return None
    return 1.0 if "embed" in name else 0.02 if name.endswith("bias") else prod(shape[1:]) ** -0.5


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Write one .safetensors file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path)
    return path


def save_random(tree: Tree, path: Path, dtype: str = "bfloat16", seed: int = 0) -> Path:
    """Write weights like `random_weights` in a dtype of torch, for models of true size.

    One tensor goes after the other, so that the file may be larger than the memory, and their numbers come from one pool over
    and over, so that it takes the disk's time and not a random generator's.
    """
    import torch

    kind = getattr(torch, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header(tree, kind))
        drawn = pool(kind, seed)
        for key, shape in tensor_shapes(tree):
            for piece in drawn(deviation(key, shape), prod(shape)):
                file.write(piece.view(torch.uint8).numpy())
    return path


def header(tree: Tree, dtype: torch.dtype) -> bytes:
    """The beginning of a .safetensors file, up to the first tensor's bytes."""
    entries: dict[str, dict[str, Any]] = {}
    offset = 0
    for key, shape in tensor_shapes(tree):
        end = offset + prod(shape) * dtype.itemsize
        entries[key] = {"dtype": FORMATS[str(dtype)], "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def pool(dtype: torch.dtype, seed: int) -> Callable[[float | None, int], Iterator[torch.Tensor]]:
    """A source of flat pieces that hold so many numbers of a deviation together; for None ones.

    Every tensor begins where the last one ended in the pool, so that layers of the same shape differ.
    """
    import torch

    numbers = torch.randn(POOL, generator=torch.Generator().manual_seed(seed))
    scaled = cache(lambda std: (torch.ones_like(numbers) if std is None else numbers * std).to(dtype))
    place = 0

    def draw(std: float | None, count: int) -> Iterator[torch.Tensor]:
        nonlocal place
        while count > 0:
            piece = scaled(std)[place : place + count]
            place, count = (place + len(piece)) % POOL, count - len(piece)
            yield piece

    return draw
