"""Networks of sd-scripts' `networks.oft` and `networks.oft_flux`: rotations of a layer's rows, block by block.

LyCORIS' diag-oft, which has the same tensors under `lora_unet`, is LyCORIS' own business: it chooses other sizes of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "oft_unet"
"""What the names of layers begin with in these files; sd-scripts trains no text encoder so."""

TINY = 1e-8


def rotated(weight: Tensor, kinds: Mapping[str, Tensor], multiplier: float) -> Tensor:
    """Return a layer's weight as such a network changes it.

    Args:
        weight: of the layer, `(rows, ...)` float32.
        kinds: the layer's tensors by their names behind the layer's: `alpha`, and either `oft_blocks`, `(k, n, n)` with
            k n rows, or `oft_blocks.0`, `.1`, ...: one for each layer that is fused in this one, whose rows lie one below the
            other.
        multiplier: of the change, 1 for all of it.

    Raises:
        ValueError: the rotations are of another number of rows.
    """
    blocks = _blocks(kinds)
    if not blocks or "alpha" not in kinds:
        raise ValueError(f"an OFT holds alpha and oft_blocks, this has {', '.join(sorted(kinds))}")
    rows = [part.shape[0] * part.shape[1] for part in blocks]
    if sum(rows) != len(weight):
        raise ValueError(f"it rotates {sum(rows)} rows, the layer has {len(weight)}")
    alpha = float(kinds["alpha"])
    parts = zip(weight.split(rows), blocks, strict=True)
    return torch.cat([_turned(part, rotations(block, alpha), multiplier) for part, block in parts])


def _blocks(kinds: Mapping[str, Tensor]) -> list[Tensor]:
    """Return a layer's parameters of rotations, in the order of its rows."""
    if "oft_blocks" in kinds:
        return [kinds["oft_blocks"]]
    numbered = [kind for kind in kinds if kind.startswith("oft_blocks.")]
    return [kinds[kind] for kind in sorted(numbered, key=lambda kind: int(kind.rpartition(".")[2]))]


def rotations(blocks: Tensor, alpha: float) -> Tensor:
    """Return the rotations `(k, n, n)` of parameters `(k, n, n)`: Cayley's form, R = (I + Q) (I - Q)^-1 with Q = B - B'.

    arXiv 2306.07280, eq. 4. As in sd-scripts, Q of all blocks together is no longer than alpha times the number of rows.
    """
    skew = blocks - blocks.transpose(1, 2)
    length = skew.norm()
    longest = alpha * blocks.shape[0] * blocks.shape[1]
    skew = skew * ((length.clamp(max=longest) + TINY) / (length + TINY))
    identity = torch.eye(blocks.shape[1])
    return (identity + skew) @ (identity - skew).inverse()


def _turned(weight: Tensor, rotation: Tensor, multiplier: float) -> Tensor:
    """Turn the rows of `(k n, ...)` block by block."""
    count, size, _ = rotation.shape
    identity = torch.eye(size)
    partly = identity + multiplier * (rotation - identity)
    return torch.einsum("knm,knp->kmp", partly, weight.reshape(count, size, -1)).reshape(weight.shape)
