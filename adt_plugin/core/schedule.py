"""When a run has turns: the one place that knows.

Optimizer steps are counted from 0. A turn belongs to a batch; with gradient accumulation an optimizer step has several
batches, and so several turns. The warm-up is counted in turns, everything else in optimizer steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from adt_plugin.core.config import ADTConfig, RunConfig, TurnConfig
from adt_plugin.core.errors import ConfigError

MEASURED = 8
"""So many last turns of the warm-up measure the adversarial gradient (ours)."""


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
    """The phases of a run: off before `begin`, then the warm-up, then a turn in every `every`-th step from `adversarial` on.

    Attributes:
        warmup: turns of the warm-up.
        every: after the warm-up, optimizer steps whose number is a multiple of this are due.
        begin: optimizer step before which there are no turns.
        adversarial: optimizer step before which none trains the denoiser; a run that resumes with its warm-up behind it has
            none at all before it.
    """

    warmup: int
    every: int
    begin: int = 0
    adversarial: int = 0

    @classmethod
    def from_config(cls, config: ADTConfig, steps: int, batches_per_step: int = 1) -> TurnSchedule:
        """Return the schedule of a run with these options, whose warm-up ends where `--adt_begin` says.

        Args:
            steps: optimizer steps of the whole run, those behind a resumed state included.
            batches_per_step: gradient accumulation.
        """
        return cls.ending_warmup(adversarial_begin(config, steps), config.warmup, config.every, batches_per_step)

    @classmethod
    def ending_warmup(cls, adversarial: int, warmup: int, every: int, batches_per_step: int) -> TurnSchedule:
        """Return the schedule whose warm-up ends at the step `adversarial`, or later where it is too long for that."""
        return cls(warmup, every, max(0, adversarial - _ceil(warmup, batches_per_step)), adversarial)

    def phase(self, step: int, turns: int) -> Phase:
        """Return the phase of the next batch.

        Args:
            step: optimizer steps taken so far.
            turns: turns made so far.
        """
        if self.in_warmup(turns):
            return Phase.WARMUP if step >= self.begin else Phase.OFF
        return Phase.ADVERSARIAL if step >= max(self.begin, self.adversarial) else Phase.OFF

    def in_warmup(self, turns: int) -> bool:
        """Return whether the turn that comes after so many others belongs to the warm-up."""
        return turns < self.warmup

    def measures(self, turns: int) -> bool:
        """Return whether the turn that comes after so many others takes the adversarial gradient at all.

        The last turns of the warm-up do, and apply none of it: the balance learns how large it is.
        """
        return turns >= self.warmup - MEASURED

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
        warm = first + whole_steps  # the step whose first batches end the warm-up, if there is a rest
        begin = max(warm, self.adversarial)
        due_steps = max(0, _multiples_below(end, self.every) - _multiples_below(begin, self.every))
        lost = rest if begin == warm and warm % self.every == 0 else 0
        return TurnCount(warmup, due_steps * batches_per_step - lost)

    def check(self, steps: int, batches_per_step: int = 1, step: int = 0, turns: int = 0) -> None:
        """Refuse a run without a turn for the adversarial gradient; arguments as for `count`.

        Raises:
            ConfigError: it has none.
        """
        if self.count(steps, batches_per_step, step, turns).adversarial == 0:
            raise ConfigError(
                f"--adt_begin, --adt_warmup {self.warmup} and --adt_every {self.every} leave no turn of this run to the "
                f"adversarial gradient: {self._way_out(steps, batches_per_step, step, turns)}"
            )

    def _way_out(self, steps: int, batches_per_step: int, step: int, turns: int) -> str:
        """Say which of the three to lower together, and to what: the fewest that will do; arguments as for `count`."""
        for names in LOWERED:
            changed = self._lowered(names, steps, batches_per_step, step, turns)
            if changed.count(steps, batches_per_step, step, turns).adversarial:
                values = {"begin": f"step {changed.adversarial}", "warmup": str(changed.warmup), "every": str(changed.every)}
                lower = " and ".join(f"--adt_{name} to {values[name]}" for name in names)
                return f"lower {lower}, or train longer (the run ends at step {step + steps})."
        return f"train longer (the run ends at step {step + steps})."

    def _lowered(self, names: Sequence[str], steps: int, batches_per_step: int, step: int, turns: int) -> TurnSchedule:
        """Return the schedule with these options low enough for a run, as far as each can help; other arguments as for `count`.

        The adversarial part gets the last tenth of what is to come, and the warm-up as much.
        """
        end, tenth = step + steps, steps // 10
        adversarial, warmup, every = max(self.begin, self.adversarial), self.warmup, self.every
        if "begin" in names:
            adversarial = min(adversarial, end - max(1, tenth))
        if "warmup" in names:
            warmup = min(warmup, turns + tenth * batches_per_step)
        changed = TurnSchedule.ending_warmup(adversarial, warmup, every, batches_per_step)
        if "every" in names:  # among so many steps there is one whose number is a multiple
            warm = max(step, changed.begin) + _ceil(max(0, warmup - turns), batches_per_step)
            every = max(1, min(every, end - max(warm, adversarial)))
        return replace(changed, every=every)


LOWERED = (
    *(("every",), ("warmup",), ("begin",)),
    *(("warmup", "every"), ("begin", "every"), ("begin", "warmup"), ("begin", "warmup", "every")),
)
"""Options that are lowered together for a run without an adversarial turn; the first that help are named."""


def adversarial_begin(config: RunConfig, steps: int) -> int:
    """Return the optimizer step that `--adt_begin` stands for, in a run of so many."""
    return round(config.begin * steps) if config.begin < 1 else int(config.begin)


@dataclass(frozen=True)
class AdversarialRate:
    """The learning rate of the adversarial part, as a share of the run's initial one.

    Where turns begin, a cosine has nearly reached zero, and they would change nothing. So the rate starts again, constant over
    the first half of what is left and then linear to 0 (ours: what the miniature was tuned with, docs/method.md).

    Attributes:
        share: of the initial rate; 0 leaves the run's own schedule as it is.
        begin, end: optimizer steps.
    """

    share: float
    begin: int
    end: int

    @classmethod
    def from_config(cls, config: ADTConfig, steps: int) -> AdversarialRate:
        """Return the rate of a run with these options and so many optimizer steps."""
        share = config.lr if config.weight > 0 else 0.0  # without a weight turns leave the model, and so its rate, alone
        return cls(share, adversarial_begin(config, steps), steps)

    def at(self, step: int) -> float | None:
        """Return the share at an optimizer step; None where the run's own schedule holds."""
        if self.share == 0 or step < self.begin:
            return None
        left = (self.end - step) / max(1, self.end - self.begin)
        return self.share * min(1.0, 2 * max(0.0, left))


def _ceil(number: int, of: int) -> int:
    """Return how many parts of this size hold the number."""
    return -(-number // of)


def _multiples_below(end: int, of: int) -> int:
    """Count the multiples of `of` in 0..end - 1."""
    return _ceil(end, of)


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
