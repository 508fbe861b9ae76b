"""Fine-tuning with adversarial supervision: the worked example of `AdversarialTurn` in a training loop of one's own.

`finetune` is the whole loop; everything ADT needs is the four lines that mention `turn`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.samplers import build_sampler
from adt_plugin.core.discriminator import Discriminator, FrozenBackbone
from adt_plugin.core.schedule import Phase
from adt_plugin.core.stopwatch import Stopwatch
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.demo.base import Base
from adt_plugin.demo.data import LATENT_PIXELS, Digits, batches, decode, encode
from adt_plugin.demo.diffusion import alphas_cumprod, diffusion_pair
from adt_plugin.demo.models import UNet
from adt_plugin.demo.optimizing import adamw, decay, follow, set_learning_rate, young

STRATEGIES: dict[str, dict[str, Any]] = {"paper": {}}
"""How a turn's path begins and is walked: keyword arguments of `AdversarialTurn` by name. Ablations add their own."""

DISCRIMINATORS: dict[str, Callable[[ADTConfig, Base], Discriminator]] = {}
"""How a strategy builds its discriminator, if not over the shipped backbone. Ablations add their own."""

TURNS: dict[str, type[AdversarialTurn]] = {}
"""What a strategy's turns are, if not those that ship. Ablations add their own."""


@dataclass(frozen=True)
class Plan:
    """One way to fine-tune.

    Attributes:
        lr: of the denoiser (AdamW), constant over the first half, then falling linearly to 0.
        batch_size: images per optimizer step.
        adt: options of the adversarial turn; None trains with the diffusion loss only.
        ema: decay, a step, of an exponential moving average of the weights, which is then the result; 0 takes the weights.
        diffusion: False leaves the diffusion loss out, an ablation.
        strategy: a key of `STRATEGIES`.
    """

    lr: float = 3e-4
    batch_size: int = 32
    adt: ADTConfig | None = None
    ema: float = 0.0
    diffusion: bool = True
    strategy: str = "paper"


@dataclass
class Budget:
    """The length of a fine-tune: a number of optimizer steps, or of seconds from the first look at the clock.

    Attributes:
        cpu_time: seconds are those of the processor, which another process does not lengthen, not those on the wall.

    Raises ValueError unless exactly one of the two is given.
    """

    steps: int | None = None
    seconds: float | None = None
    cpu_time: bool = False
    taken: int = field(default=0, init=False)
    clock: Stopwatch = field(init=False)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("a budget is a number of steps or of seconds: give one of the two")
        self.clock = Stopwatch(cpu_time=self.cpu_time)

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was first looked at."""
        return self.clock.elapsed

    @property
    def progress(self) -> float:
        """The share that is used up: 0 at the start, 1 or more at the end."""
        elapsed = self.elapsed
        return self.taken / self.steps if self.steps is not None else elapsed / (self.seconds or 1.0)


def finetune(
    unet: UNet,
    train: Digits,
    plan: Plan,
    budget: Budget,
    turn: AdversarialTurn | None,
    seed: int,
    after_step: Callable[[Budget], object] = lambda budget: None,
) -> None:
    """Train `unet` in place until the budget is used up; with an average, its weights are the average's at the end.

    The discriminator's warm-up comes before the first optimizer step; a budget in seconds pays for it.

    Args:
        turn: from `build_turn`; None trains with the diffusion loss only.
        seed: of the batches, the noise and the timesteps; the turn has its own.
        after_step: called after every optimizer step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = adamw(unet, plan.lr)
    averaged = copy.deepcopy(unet).requires_grad_(False) if plan.ema else None
    for images, labels in batches(train, plan.batch_size, generator):
        if budget.progress >= 1:
            if averaged is not None:
                unet.load_state_dict(averaged.state_dict())
            return
        latents = encode(images)
        denoiser = partial(unet, labels=labels)
        if turn is not None and turn.phase(budget.taken) is Phase.WARMUP:
            turn(denoiser, latents)
            continue

        noisy, timesteps, noise = diffusion_pair(latents, generator)
        noise_pred = denoiser(noisy, timesteps)
        loss = F.mse_loss(noise_pred, noise)
        if turn is not None:
            turn.watch(noise_pred)
        loss.backward(inputs=None if plan.diffusion else [noise_pred])  # without the loss, its norm is still the measure
        if turn is not None and turn.due(budget.taken):
            turn(denoiser, latents)

        set_learning_rate(optimizer, plan.lr * decay(budget.progress))
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        budget.taken += 1
        if averaged is not None:
            follow(averaged, unet, young(plan.ema, budget.taken))
        after_step(budget)


def build_turn(base: Base, plan: Plan, seed: int) -> AdversarialTurn | None:
    """Build the plan's adversarial turn over the miniature's backbone and decoder; None for a plan without one."""
    if plan.adt is None:
        return None
    config = replace(plan.adt, seed=seed)
    build, kind = DISCRIMINATORS.get(plan.strategy, discriminator_of), TURNS.get(plan.strategy, AdversarialTurn)
    return kind(
        config,
        sampler=build_sampler(config.sampler, alphas_cumprod(), "epsilon", config.spacing),
        decode=decode,
        discriminator=build(config, base),
        latent_pixels=LATENT_PIXELS,
        **STRATEGIES[plan.strategy],
    )


def discriminator_of(config: ADTConfig, base: Base) -> Discriminator:
    """Build the discriminator of these options over the shipped backbone."""
    return Discriminator.from_config(config, FrozenBackbone(base.backbone, base.backbone.channels))


def tunable_copy(unet: UNet) -> UNet:
    """Return a trainable copy of a frozen denoiser."""
    return copy.deepcopy(unet).requires_grad_(True).train()
