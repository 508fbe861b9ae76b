"""The little that several processes need: what trains or measures the heads is averaged, draws differ by rank."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def averaged(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def true_everywhere(flag: Tensor) -> bool:
    """Whether a 0-dim flag holds in every process, so that all take the same decision. Waits for the device."""
    return bool(averaged(flag.float()) == 1.0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average `p.grad` over all processes, so that the heads stay the same on each."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = averaged(parameter.grad)


def all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether every gradient is finite. After `average_gradients`, all processes see the same. Waits for the device."""
    return bool(torch.stack([p.grad.isfinite().all() for p in parameters if p.grad is not None]).all())
