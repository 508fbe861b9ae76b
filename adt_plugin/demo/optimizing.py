"""The miniature's optimizer, its learning rate, and the average of weights."""

from __future__ import annotations

import torch
from torch import nn


def adamw(network: nn.Module, lr: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """Build AdamW with betas (0.9, 0.99); PyTorch's fused kernel, which CPUs have from 2.4 on, saves a fifth of a step here."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=version >= (2, 4))


def decay(progress: float) -> float:
    """Return the learning-rate factor at `progress` in 0..1: 1 over the first half, then linearly to 0."""
    return min(1.0, 2.0 * (1.0 - progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def young(decay: float, step: int) -> float:
    """Return the decay of an average of weights at a step: it rises to `decay`, since a young average must forget faster."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def follow(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move an exponential moving average of a network's weights towards it; buffers are copied."""
    torch._foreach_lerp_(list(averaged.parameters()), [p.detach() for p in network.parameters()], 1 - decay)
    for mine, its in zip(averaged.buffers(), network.buffers(), strict=True):
        mine.copy_(its)
