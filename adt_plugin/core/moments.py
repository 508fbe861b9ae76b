"""What a loop's optimizers remember of plain training, made to fit the gradients that come with turns.

Adam and its kin divide by the root of an average of squared gradients. A step with a turn has `--adt_weight` times the gradient
of a plain one, and the average forgets over a thousand steps: until it has caught up, every step would be up to that many times
too long. On the small Stable Diffusion a run's last 160 steps moved a LoRA three times as far as their rate says
(docs/method.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from adt_plugin.core.config import TurnConfig

SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "square_avg")
"""As optimizers call their averages of squared gradients, whole or by rows and columns."""
SCALES = ("absmax2", "max2")
"""The factors of bitsandbytes' averages in eight bits."""
OF_BITSANDBYTES = "state2"
"""Its average itself, where that is in full precision."""


def growth(config: TurnConfig) -> float:
    """Return how many times larger squared gradients are with turns than without, on average over steps.

    A balanced turn's gradient has `--adt_weight` times the norm of the diffusion loss's and a direction of its own (ours).
    Without a balance nothing is known beforehand: 1.
    """
    if config.balance == "none":
        return 1.0
    return 1 + min(config.weight, config.max_grad_ratio) ** 2 / config.every


@torch.no_grad()
def expect_growth(optimizers: Iterable[Any], factor: float) -> None:
    """Multiply the optimizers' averages of squared gradients; those that keep none, or under other names, stay as they are."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            scales = [state[name] for name in SCALES if isinstance(state.get(name), Tensor)]
            squares = [state[name] for name in SQUARES if isinstance(state.get(name), Tensor)]
            whole = state.get(OF_BITSANDBYTES)
            if not scales and isinstance(whole, Tensor) and whole.is_floating_point():
                squares.append(whole)
            for tensor in (*scales, *squares):
                tensor.mul_(factor)
