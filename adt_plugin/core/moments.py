"""What a loop's optimizers remember of plain training, made to fit the gradients that come with turns.

Adam and its kin divide by the root of an average of squared gradients. A step with a turn has `--adt_weight` times the gradient
of a plain one, and the average forgets over a thousand steps: until it has caught up, every step would be up to that many times
too long. On the small Stable Diffusion a run's last 160 steps moved a LoRA three times as far as their rate says
(docs/method.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from adt_plugin.core.config import TurnConfig

SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "square_avg")
"""As optimizers call their averages of squared gradients, whole or by rows and columns."""
SCALES = ("absmax2", "max2")
"""The factors of bitsandbytes' averages in eight bits."""
OF_BITSANDBYTES, ITS_CODE, ITS_SCALES = "state2", "qmap2", "absmax2"
"""Its average, in full precision or in eight bits; what the eight bits stand for, and the factor of each block."""


def growth(config: TurnConfig) -> float:
    """Return how many times larger squared gradients are with turns than without, on average over steps.

    A balanced turn's gradient has `--adt_weight` times the norm of the diffusion loss's and a direction of its own (ours).
    Without a balance nothing is known beforehand: 1.
    """
    if config.balance == "none":
        return 1.0
    return 1 + min(config.weight, config.max_grad_ratio) ** 2 / config.every


@torch.no_grad()
def expect_growth(optimizers: Iterable[Any], factor: float, unmoved: Collection[Tensor] = ()) -> None:
    """Multiply the optimizers' averages of squared gradients; those that keep none, or under other names, stay as they are.

    Args:
        unmoved: parameters that turns give no gradient, whose averages stay, too.
    """
    left_alone = set(map(id, unmoved))
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            if id(parameter) in left_alone:
                continue
            scales = [state[name] for name in SCALES if isinstance(state.get(name), Tensor)]
            squares = [state[name] for name in SQUARES if isinstance(state.get(name), Tensor)]
            whole = state.get(OF_BITSANDBYTES)
            if not scales and isinstance(whole, Tensor) and whole.is_floating_point():
                squares.append(whole)
            for tensor in (*scales, *squares):
                tensor.mul_(factor)


@torch.no_grad()
def plain_norm(optimizers: Iterable[Any]) -> float | None:
    """Return the root mean square norm of the gradients that the averages are of, clipped as the loop clips them.

    None where an average is kept in rows and columns, or in a form that is not known here. Waits for the device.
    """
    total = 0.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for state in (optimizer.state.get(parameter) for parameter in group["params"]):
                if not state:
                    continue
                average, step = _sum_of_squares(state), float(state.get("step", 0))
                if average is None or not step:
                    return None
                decay = group["betas"][1] if group.get("betas") else 0.0
                total += float(average) / (1 - decay**step)
    return total**0.5 if total else None


def _sum_of_squares(state: dict[str, Any]) -> Tensor | None:
    """Return the sum over a parameter's average of squared gradients, 0-dim."""
    average, scales = state.get("exp_avg_sq", state.get(OF_BITSANDBYTES)), state.get(ITS_SCALES)
    if not isinstance(average, Tensor):
        return None
    if average.is_floating_point():
        return average.sum()
    if not isinstance(scales, Tensor) or ITS_CODE not in state:
        return None
    values: Tensor = state[ITS_CODE][average.flatten().long()].float()
    size = next(2**power for power in range(4, 32) if -(-len(values) // 2**power) <= len(scales))
    return (values * scales.repeat_interleave(size)[: len(values)]).sum()


def age(optimizers: Iterable[Any]) -> int:
    """Return how many steps the oldest average is of, those before a resumed state included; 0 where none counts them.

    Waits for the device where the count lies there.
    """
    return max((int(count) for optimizer in optimizers for count in _counts(optimizer)), default=0)


def _counts(optimizer: Any) -> Iterator[Any]:
    """Yield what optimizers count their steps by: in the state of a parameter, or, as schedule-free ones, of a group."""
    yield from (state["step"] for state in optimizer.state.values() if isinstance(state, dict) and "step" in state)
    yield from (group["k"] for group in optimizer.param_groups if isinstance(group.get("k"), int))


MEMORY = 0.999
"""Share of such an average that outlives a step: the second beta of Adam as everybody leaves it."""


class Growth:
    """Enlarges the averages before a turn that follows plain steps, once for each such stretch.

    Where the loop clips gradients, they cannot grow beyond that, and neither does the average. What it still holds of earlier
    turns counts.

    Args:
        config: of the turns.
        optimizers: the loop's.
        patience: a stretch of more optimizer steps than this is one; fewer are of an average that follows by itself, or lie
            between two turns.
        unmoved: parameters that turns give no gradient.
        clip: norm to which the loop clips gradients; 0 where it does not.
    """

    def __init__(
        self,
        config: TurnConfig,
        optimizers: Iterable[Any],
        patience: int,
        unmoved: Collection[Tensor] = (),
        clip: float = 0.0,
    ) -> None:
        self.factor, self.optimizers, self.unmoved, self.clip = growth(config), list(optimizers), unmoved, clip
        self.patience = max(patience, config.every)
        self.last: int | None = None
        self.told = 1.0

    def follow(self, step: int) -> None:
        """Go on after turns that a resumed state has behind it.

        Args:
            step: the optimizer step that comes next, from 0.
        """
        self.last = step - 1

    def before(self, step: int) -> bool:
        """Enlarge the averages if the turn of this optimizer step follows plain ones; return whether it did."""
        plain = age(self.optimizers) if self.last is None else step - self.last - 1
        grows = self.factor != 1 and plain > self.patience
        if grows:
            held = 0.0 if self.last is None else MEMORY**plain
            self.told = self._within_the_clip(self.factor / (1 + (self.factor - 1) * held))
            expect_growth(self.optimizers, self.told, self.unmoved)
        return grows

    def _within_the_clip(self, factor: float) -> float:
        norm = plain_norm(self.optimizers) if self.clip else None
        return max(1.0, min(factor, (self.clip / norm) ** 2)) if norm else factor

    def after(self, step: int) -> None:
        """Note that the turn of this step has been made."""
        self.last = step

    def undo(self) -> None:
        """Take back what `before` did: there was no turn."""
        expect_growth(self.optimizers, 1 / self.told, self.unmoved)
