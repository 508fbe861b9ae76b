"""What a fine-tune of the miniature costs, counted in operations: the same on every machine, however busy.

The unit is one optimizer step of plain training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from adt_plugin.core.schedule import start_range
from adt_plugin.demo.base import load_base
from adt_plugin.demo.data import LATENT_SHAPE, encode, load_splits
from adt_plugin.demo.diffusion import diffusion_pair
from adt_plugin.demo.finetune import Plan, build_turn, tunable_copy


def operations(work: Callable[[], object]) -> int:
    """Count the floating-point operations of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@cache
def plain_step(batch_size: int) -> int:
    """Count forward and backward of the denoiser on one batch."""
    unet = tunable_copy(load_base().unet)
    latents, labels = torch.zeros(batch_size, *LATENT_SHAPE), torch.zeros(batch_size, dtype=torch.long)

    def step() -> None:
        noisy, timesteps, noise = diffusion_pair(latents, torch.Generator().manual_seed(0))
        F.mse_loss(unet(noisy, timesteps, labels), noise).backward()

    return operations(step)


@cache
def mean_turns(plan: Plan) -> tuple[float, float]:
    """Count a turn of the warm-up and one after it, each the mean over the starts that the options allow."""
    assert plan.adt is not None
    base = load_base()
    images, labels = load_splits().train.images[: plan.batch_size], load_splits().train.labels[: plan.batch_size]
    low, high = start_range(plan.adt)

    def mean(warmup: int) -> float:
        total = 0
        for start in range(low, high + 1):
            share = start / plan.adt.steps
            only = replace(plan, adt=replace(plan.adt, start_min=share, start_max=share, warmup=warmup))
            unet, turn = tunable_copy(base.unet), build_turn(base, only, 0)
            assert turn is not None
            turn.balance.diffusion.update(torch.ones(()))
            total += operations(partial(turn, partial(unet, labels=labels), encode(images)))
        return total / (high - low + 1)

    return mean(1), mean(0)


def steps_for(plan: Plan, units: float) -> int:
    """Return the optimizer steps after which a fine-tune by this plan has cost so many plain ones, its warm-up included."""
    if plan.adt is None:
        return round(units)
    step, adt = plain_step(plan.batch_size), plan.adt
    warmup, turn = mean_turns(plan)
    left = units * step - adt.warmup * warmup
    return max(1, round(left / (step + turn / adt.every)))
