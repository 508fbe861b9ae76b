"""What the host's own options for small cards save, from the sizes of weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from adt_plugin.cost.models import LowRank
from adt_plugin.cost.workbench import DTYPES, Workload

EIGHT_BIT = ("adamw8bit", "pagedadamw8bit")
"""`--optimizer_type` of AdamW with moments of one byte."""

NO_FP8 = ("anima", "hunyuan")
"""Models whose trainers do not take `--fp8_base`."""

UNITS = ("transformer_blocks", "resnets")
"""How the lists end whose members gradient checkpointing computes again one by one."""


def savings(workload: Workload, asked: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes by which each of these options lowers every peak, by its name; one that is not counted is not there.

    Weights in fp8 take one byte, and those of the block that computes two more. Swapped blocks are off the card; the block
    on its way there is not counted. Moments of AdamW in 8 bits take one byte each.

    Args:
        workload: the run.
        asked: the host's options, by its names.
    """
    if not asked:
        return {}
    with torch.device("meta"):
        network = workload.size.build()
    fp8 = _takes_fp8(workload) and bool(asked.get("fp8_base") or asked.get("fp8_base_unet"))
    counts: dict[str, Callable[[], int | None]] = {
        **dict.fromkeys(("fp8_base", "fp8_base_unet"), lambda: _one_byte(workload, network)),
        "blocks_to_swap": lambda: _swapped(workload, network, int(asked["blocks_to_swap"]), fp8),
        "use_8bit_adam": lambda: _moments(workload, network),
        "optimizer_type": lambda: _moments(workload, network) if str(asked["optimizer_type"]).lower() in EIGHT_BIT else None,
    }
    found = {name: count() for name, count in counts.items() if asked.get(name)}
    known = {name: size for name, size in found.items() if size is not None}
    for one, other in (("fp8_base", "fp8_base_unet"), ("optimizer_type", "use_8bit_adam")):
        if one in known and other in known:  # two names of one thing
            known[other] = 0
    return known


def _takes_fp8(workload: Workload) -> bool:
    """Return whether fp8 is counted: not where the host refuses it, nor without checkpointing: weights are then kept twice."""
    return workload.rank > 0 and workload.checkpointing and workload.dtype == "bf16" and workload.model not in NO_FP8


def _one_byte(workload: Workload, network: nn.Module) -> int | None:
    """Return what fp8 saves; None where it is not counted."""
    if not _takes_fp8(workload):
        return None
    units = [unit for name, module in network.named_modules() if name.endswith(UNITS) for unit in module.children()]
    return weights(network) - 2 * max(map(weights, units))


def _swapped(workload: Workload, network: nn.Module, blocks: int, fp8: bool) -> int | None:
    """Return the bytes of so many swapped blocks; None for a U-Net, and where all weights are trained.

    Where a model has two kinds of blocks, the host swaps one of the first for two of the second.
    """
    lists = [list(module.children()) for name, module in network.named_children() if name.endswith("transformer_blocks")]
    lists = [part for part in lists if part]
    if not lists or workload.rank == 0:
        return None
    numbers = [blocks] if len(lists) == 1 else [blocks // 2, 2 * (blocks - blocks // 2)]
    moved = [block for part, number in zip(lists, numbers, strict=True) for block in part[:number]]
    return sum(map(weights, moved)) * (1 if fp8 else DTYPES[workload.dtype].itemsize)


def _moments(workload: Workload, network: nn.Module) -> int:
    """Return what AdamW's two moments save in one byte each."""
    if not workload.rank:
        return 2 * weights(network) * (DTYPES[workload.dtype].itemsize - 1)
    with torch.device("meta"):
        return 2 * weights(LowRank(network, workload.rank)) * (torch.float32.itemsize - 1)


def weights(module: nn.Module) -> int:
    """Return how many numbers a module's parameters hold."""
    return sum(parameter.numel() for parameter in module.parameters())
