"""Reductions over several processes: whatever is measured or decided is so for the global batch, draws differ by rank.

The gradients of the denoiser are the training loop's to average (DistributedDataParallel, or by hand before the step).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of processes; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def all_reduce_norm(norm: Tensor) -> Tensor:
    """Return the norms of the global batch's gradients, from those of every process's own mean over its own part.

    Part r of the global batch's gradient is 1/W of process r's, so the squares add up to W times their mean over W^2. One
    process's number that is not finite makes the result not finite in all.

    Args:
        norm: of any shape, the same in every process; so is the result.
    """
    if world_size() == 1:
        return norm
    # in double precision: the squares of large float32 norms would overflow
    return (all_reduce_mean(norm.double().square()) / world_size()).sqrt().to(norm.dtype)


def all_processes_agree(flag: Tensor) -> bool:
    """Return whether a 0-dim flag holds in every process, so that all take the same decision. Waits for the device."""
    return bool(all_reduce_mean(flag.float()) == 1.0)


def any_process(flag: Tensor | bool, device: torch.device) -> bool:
    """Return whether a flag holds in one process at least. With a single process no device is waited for, but for a tensor's.

    Args:
        flag: 0-dim, if it is a tensor.
        device: where the processes exchange it.
    """
    if world_size() == 1:
        return bool(flag)
    return not all_processes_agree(~(flag if isinstance(flag, Tensor) else torch.full((), flag, device=device)))


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average `p.grad` over all processes, so that the heads stay the same on each."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = all_reduce_mean(parameter.grad)


def all_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return whether every gradient is finite, 0-dim. After `all_reduce_gradients`, all processes see the same."""
    return torch.stack([p.grad.isfinite().all() for p in parameters if p.grad is not None]).all()
