"""One run of the experiment, from a plan to its scores; shared by the demo, the benchmark and the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from adt_plugin.core.schedule import TurnSchedule
from adt_plugin.demo.base import Base, load_base
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.data import Digits, load_splits
from adt_plugin.demo.evaluate import SAMPLER_STEPS, Evaluator, build_evaluator
from adt_plugin.demo.finetune import Budget, Plan, build_turn, finetune, tunable_copy
from adt_plugin.demo.models import UNet
from adt_plugin.demo.variants import Variant

TURN_WORK, SAMPLE_STEP_WORK = 6.0, 0.0055
"""Rough cost of an adversarial turn and of one sampler step of one sample, in diffusion steps; for progress bars only."""
STEPS_PER_SECOND = 60.0
"""Diffusion steps per second, roughly; for progress bars only."""


Progress = Callable[[float], object]
"""Called with the work done since the last call, in steps of the denoiser's training."""


@dataclass(frozen=True)
class Setting:
    """The part of an experiment that must be the same for figures to be comparable.

    Attributes:
        base: number of the shipped denoiser that every run starts from.
        split: `heldout` for reported figures, `validation` for choosing settings.
        samples: generated per evaluation.
        noise_seed: of the noise that all evaluations start from.
        sampler_steps: numbers of sampler steps that runs are scored at.
        detect: those at which detectability is measured.
        threads: PyTorch's.
    """

    base: int = 0
    split: str = "heldout"
    samples: int = 1000
    noise_seed: int = 1
    sampler_steps: tuple[int, ...] = SAMPLER_STEPS
    detect: tuple[int, ...] = (5, 10)
    threads: int = 1


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned denoiser and what it took."""

    unet: UNet
    seconds: float
    steps: int


Watcher = Callable[[Tuned, float], object]
"""Called with the state so far and the share of the budget that is used up."""


@dataclass(frozen=True)
class Study:
    """The pretrained networks, the data and the evaluation of one setting; reports all its work to `progress`."""

    setting: Setting
    base: Base
    train: Digits
    evaluator: Evaluator
    progress: Progress

    def tune(self, plan: Plan | None, budget: Budget, seed: int, after_step: Watcher = lambda tuned, progress: None) -> Tuned:
        """Fine-tune a copy of the base; without a plan, the base itself.

        Args:
            after_step: called after every optimizer step with the state so far and the share of the budget used up.
        """
        if plan is None:
            return Tuned(self.base.unet, 0.0, 0)
        unet, turn = tunable_copy(self.base.unet), build_turn(self.base, plan, seed)
        work = Shares(tuning_work(plan, budget), self.progress)

        def step_taken(budget: Budget) -> None:
            work.reach(budget.progress)
            after_step(Tuned(unet, budget.elapsed, budget.taken), budget.progress)

        finetune(unet, self.train, plan, budget, turn, seed, step_taken)
        work.reach(1.0)
        return Tuned(unet, budget.elapsed, budget.taken)

    def score(self, variant: Variant, tuned: Tuned, seed: int) -> Cell:
        """Score what a tuned denoiser makes on the variant's grids, as a cell."""
        scores = self.evaluator.evaluate(tuned.unet, variant.grids, self.setting.sampler_steps)
        self.progress(scoring_work(self.setting, variant))
        return Cell(variant.name, seed, tuned.seconds, tuned.steps, self.setting.threads, scores)


class Shares:
    """Progress of one job, from the share that is done to increments of work."""

    def __init__(self, work: float, progress: Progress) -> None:
        self.work, self.progress, self.done = work, progress, 0.0

    def reach(self, share: float) -> None:
        """Report the work since the last call, up to the whole job."""
        share = min(share, 1.0)
        self.progress(self.work * (share - self.done))
        self.done = share


def open_study(setting: Setting, progress: Progress = lambda work: None) -> Study:
    """Load the data and the shipped networks; sets PyTorch's number of threads.

    Raises ValueError for a split that runs are not scored on.
    """
    torch.set_num_threads(setting.threads)
    splits, base = load_splits(), load_base(setting.base)
    evaluator = build_evaluator(base, splits, setting.split, setting.samples, setting.noise_seed, setting.detect)
    return Study(setting, base, splits.train, evaluator, progress)


def tuning_work(plan: Plan | None, budget: Budget) -> float:
    """Estimate what a fine-tune costs, in diffusion steps."""
    if plan is None:
        return 0.0
    if budget.steps is None:
        return (budget.seconds or 0.0) * STEPS_PER_SECOND
    if plan.adt is None:
        return budget.steps
    # the warm-up comes before the first optimizer step
    turns = (
        plan.adt.warmup + TurnSchedule(plan.adt.warmup, plan.adt.every).count(budget.steps, turns=plan.adt.warmup).adversarial
    )
    return budget.steps + turns * TURN_WORK


def scoring_work(setting: Setting, variant: Variant) -> float:
    """Estimate what scoring a variant costs, in diffusion steps."""
    return sampling_work(setting.samples, setting.sampler_steps) * len(variant.grids)


def sampling_work(samples: int, steps: Sequence[int]) -> float:
    """Estimate what drawing samples at each of these numbers of steps costs, in diffusion steps."""
    return samples * sum(steps) * SAMPLE_STEP_WORK
