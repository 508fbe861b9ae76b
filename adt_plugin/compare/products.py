"""LoHa and LoKr: changes that are a Hadamard or a Kronecker product, of `networks.loha`, `networks.lokr` and LyCORIS.

Training scales such a change by alpha / rank once. LyCORIS (3.1 to 4.1) scales it twice when it merges, and takes the wrong
side of a Tucker core for the rank, so that these two are computed here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SIGNS = ("hada_w1_a", "lokr_w1", "lokr_w1_a")
"""A layer's tensors of these two kinds hold one of these."""


def is_product(kinds: Mapping[str, Tensor]) -> bool:
    """Tell whether a layer's tensors, by their names behind the layer's, are of a LoHa or a LoKr."""
    return any(sign in kinds for sign in SIGNS)


def change(kinds: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """Return what a LoHa or a LoKr adds to a layer's weight.

    Args:
        kinds: the layer's tensors by their names behind the layer's.
        shape: of the weight, rows first.

    Raises:
        ValueError: the change is of another size.
    """
    found = hadamard(kinds) if "hada_w1_a" in kinds else kronecker(kinds)
    if found.numel() != shape.numel() or len(found) != shape[0]:
        raise ValueError(f"it changes {tuple(found.shape)}, the layer has {tuple(shape)}")
    return found.reshape(shape)


def hadamard(kinds: Mapping[str, Tensor]) -> Tensor:
    """Return the change of a LoHa, (W1a W1b) * (W2a W2b) alpha / rank (arXiv 2108.06098, 2.2); rows first."""
    parts = (_whole(kinds[f"hada_w{i}_a"], kinds[f"hada_w{i}_b"], kinds.get(f"hada_t{i}")) for i in (1, 2))
    return next(parts) * next(parts) * _scale(kinds, len(kinds["hada_w1_b"]))


def kronecker(kinds: Mapping[str, Tensor]) -> Tensor:
    """Return the change of a LoKr, the Kronecker product of W1 and W2, each whole or of low rank.

    Scaled by alpha / rank where one of them is of low rank, and else by 1, whatever alpha the file has.
    """
    one = kinds["lokr_w1"] if "lokr_w1" in kinds else kinds["lokr_w1_a"] @ kinds["lokr_w1_b"]
    two = kinds["lokr_w2"] if "lokr_w2" in kinds else _whole(kinds["lokr_w2_a"], kinds["lokr_w2_b"], kinds.get("lokr_t2"))
    rank = next((len(kinds[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in kinds), None)
    one = one.reshape(*one.shape, *(1 for _ in two.shape[2:]))
    return torch.kron(one, two.contiguous()) * (1.0 if rank is None else _scale(kinds, rank))


def _whole(rows: Tensor, columns: Tensor, core: Tensor | None) -> Tensor:
    """Return the product of a side's two factors; with a Tucker core, `(rank, rank, ...)`, both have their rank first."""
    if core is None:
        return rows @ columns
    return torch.einsum("ij...,jc,ir->rc...", core, columns, rows)


def _scale(kinds: Mapping[str, Tensor], rank: int) -> float:
    """Return alpha / rank; no alpha is the rank."""
    return float(kinds["alpha"]) / rank if "alpha" in kinds else 1.0
