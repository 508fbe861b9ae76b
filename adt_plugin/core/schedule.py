"""When a run has turns: the one place that knows.

Optimizer steps are counted from 0. A turn belongs to a batch; with gradient accumulation an optimizer step has several
batches, and so several turns. The warm-up is counted in turns, everything else in optimizer steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from adt_plugin.core.config import TurnConfig
from adt_plugin.core.errors import ConfigError


class Phase(Enum):
    """What the turns of an optimizer step do."""

    OFF = "off"
    """There are none."""
    WARMUP = "warm-up"
    """One in every batch, which trains the discriminator alone."""
    ADVERSARIAL = "adversarial"
    """One in every batch of a due step, which trains the denoiser and the discriminator."""


@dataclass(frozen=True)
class TurnCount:
    """Numbers of turns: of the warm-up, and after it."""

    warmup: int
    adversarial: int

    @property
    def total(self) -> int:
        """All turns."""
        return self.warmup + self.adversarial


@dataclass(frozen=True)
class TurnSchedule:
    """The phases of a run: off before `begin`, then the warm-up, then a turn in every `every`-th step.

    Attributes:
        warmup: turns of the warm-up.
        every: after the warm-up, optimizer steps whose number is a multiple of this are due.
        begin: optimizer step before which there are no turns.
    """

    warmup: int
    every: int
    begin: int = 0

    @classmethod
    def from_config(cls, config: TurnConfig) -> TurnSchedule:
        """Return the schedule of a run with these options."""
        return cls(config.warmup, config.every)

    def phase(self, step: int, turns: int) -> Phase:
        """Return the phase of the next batch.

        Args:
            step: optimizer steps taken so far.
            turns: turns made so far.
        """
        if step < self.begin:
            return Phase.OFF
        return Phase.WARMUP if self.in_warmup(turns) else Phase.ADVERSARIAL

    def in_warmup(self, turns: int) -> bool:
        """Return whether the turn that comes after so many others belongs to the warm-up."""
        return turns < self.warmup

    def due(self, step: int, turns: int) -> bool:
        """Return whether the next batch has a turn; arguments as for `phase`."""
        phase = self.phase(step, turns)
        return phase is Phase.WARMUP or (phase is Phase.ADVERSARIAL and step % self.every == 0)

    def count(self, steps: int, batches_per_step: int = 1, step: int = 0, turns: int = 0) -> TurnCount:
        """Count the turns that a run of so many optimizer steps will make.

        Args:
            steps: optimizer steps of the run.
            batches_per_step: gradient accumulation.
            step, turns: where the run resumes; `steps` come after that.
        """
        end, first = step + steps, max(step, self.begin)
        if first >= end:
            return TurnCount(0, 0)
        warmup = min(max(0, self.warmup - turns), (end - first) * batches_per_step)
        whole_steps, rest = divmod(warmup, batches_per_step)
        first += whole_steps
        due_steps = max(0, _multiples_below(end, self.every) - _multiples_below(first, self.every))
        lost = rest if first % self.every == 0 else 0  # of a due step whose first batches end the warm-up
        return TurnCount(warmup, due_steps * batches_per_step - lost)

    def check(self, steps: int, batches_per_step: int = 1, step: int = 0, turns: int = 0) -> None:
        """Refuse a run without a turn for the adversarial gradient; arguments as for `count`.

        Raises:
            ConfigError: it has none.
        """
        if self.count(steps, batches_per_step, step, turns).adversarial == 0:
            raise ConfigError(
                f"--adt_warmup {self.warmup} and --adt_every {self.every} leave no turn of this run (--max_train_steps "
                f"{steps}) to the adversarial gradient: lower --adt_warmup to about a tenth of it, or train longer."
            )


def _multiples_below(end: int, of: int) -> int:
    """Count the multiples of `of` in 0..end - 1."""
    return -(-end // of)


def start_range(config: TurnConfig) -> tuple[int, int]:
    """Return the lowest and the highest start s in 1..m that the configured fractions of the grid allow.

    Raises:
        ConfigError: none is left.
    """
    low = max(1, math.ceil(config.start_min * config.steps - 1e-9))
    high = math.floor(config.start_max * config.steps + 1e-9)
    if low > high:
        raise ConfigError(
            f"--adt_start_min {config.start_min:g} and --adt_start_max {config.start_max:g} leave no start on a grid of "
            f"{config.steps} steps: widen the range or raise --adt_steps."
        )
    return low, high


def count_grad_steps(config: TurnConfig, start: int) -> int:
    """Return how many steps of a path from this start carry gradient."""
    return start if config.grad_mask == "all" else min(config.grad_steps, start)
