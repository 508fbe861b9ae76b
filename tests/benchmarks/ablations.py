"""What the benchmark compares beyond the demo: rivals with their trials, and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adt_plugin.core.diffusion.denoiser import Denoiser, call_seeded
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import Unroll, noised_start, unroll
from adt_plugin.demo.finetune import BACKBONES, STRATEGIES
from adt_plugin.demo.models import RotationNet
from adt_plugin.demo.variants import Variant, changed, plain


def white_noise_start(sampler: Sampler, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
    """Ablation: start from white noise; what the path ends in has nothing to do with its partner but the class.

    With `start_min=1`, noising an image of zeros to the first grid point is white noise of that point's variance.
    """
    return noised_start(sampler, torch.zeros_like(clean), noise, steps, start)


def unconstrained_unroll(
    denoiser: Denoiser,
    sampler: Sampler,
    latents: Tensor,
    seeds: Sequence[int],
    keep: Sequence[int],
    record: bool,
    graph_denoiser: Denoiser | None = None,
) -> Unroll:
    """Ablation: let gradients also flow through the denoiser's inputs, step through step; for samplers without memory.

    The path is walked a second time with its graph, so that dL/do_i holds what o_i does to all later outputs; replaying
    the trained steps with it gives the full gradient.
    """
    path = unroll(denoiser, sampler, latents, seeds, keep, record)
    if not record:
        return path
    steps = []
    for step in path.steps:
        output = call_seeded(denoiser, latents, step.timestep, step.seed)
        latents = sampler.step(output, step.timestep, latents)
        steps.append(replace(step, output=output))
    return Unroll(latents, steps)


def untrained(network: RotationNet) -> RotationNet:
    """Ablation: a backbone of the same form that has learnt nothing, the same for every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(network)().requires_grad_(False).eval()


STRATEGIES["white noise"] = {"noised_start": white_noise_start}
STRATEGIES["unconstrained"] = {"unroll": unconstrained_unroll}
STRATEGIES["untrained backbone"] = {}
BACKBONES["untrained backbone"] = untrained

FROZEN = {"disc_lr": 0.0, "warmup": 8, "disc_steps": 1, "disc_penalty": 0.0}
EMA = 0.99


def plain_trial(lr: float) -> Variant:
    """Plain training at this rate, with an average of the weights."""
    return Variant(f"plain, lr {lr:g}, EMA", replace(plain(lr), ema=EMA))


def frozen_trial(weight: float, lr: float) -> Variant:
    """Heads that are never trained, at this weight and rate, with an average of the denoiser's weights."""
    return Variant(f"frozen heads, weight {weight:g}, lr {lr:g}, EMA", changed(FROZEN | {"weight": weight}, lr=lr, ema=EMA))


def without_average(variant: Variant) -> Variant:
    """The same without an average of the weights."""
    assert variant.plan is not None
    return Variant(variant.name.removesuffix(", EMA"), replace(variant.plan, ema=0.0))


PLAIN_TRIALS = tuple(plain_trial(lr) for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3))
FROZEN_TRIALS = tuple(frozen_trial(*pair) for pair in ((2, 3e-4), (5, 3e-4), (10, 3e-4), (5, 1e-4), (5, 1e-3)))
"""What each rival is chosen from, on validation; the best is tried without its average too."""

PAPER = (
    Variant("from white noise, no image-to-image", changed({"start_min": 1.0}, strategy="white noise")),
    Variant("no diffusion loss", changed(diffusion=False)),
    Variant("unary discriminator", changed({"disc_type": "unary"})),
    Variant("unconstrained backward path", changed(strategy="unconstrained")),
    Variant("no augmentation", changed({"augment": "none"})),
    Variant("a backbone that has learnt nothing", changed(strategy="untrained backbone")),
)
"""Each without one of the paper's parts."""

LEVERS = (
    Variant("hinge loss", changed({"disc_loss": "hinge"})),
    Variant("no penalty", changed({"disc_penalty": 0.0})),
    Variant("one head step a turn", changed({"disc_steps": 1})),
    Variant("heads at a quarter of the rate", changed({"disc_lr": 5e-4})),
    Variant("warm-up of 8 turns", changed({"warmup": 8})),
    Variant("a third of the model's rate", changed(lr=3e-5)),
    Variant("three times the model's rate", changed(lr=3e-4)),
    Variant("weight 1", changed({"weight": 1.0})),
    Variant("weight 2.5", changed({"weight": 2.5})),
    Variant("weight 10", changed({"weight": 10.0, "max_grad_ratio": 20.0})),
    Variant("starts from the whole path", changed({"start_min": 0.0})),
    Variant("K = 1", changed({"grad_steps": 1})),
    Variant("all steps", changed({"grad_mask": "all"})),
    Variant("10-step grid", changed({"steps": 10})),
    Variant("a turn in every second step", changed({"every": 2})),
    Variant("steps drawn by weight", changed({"grad_mask": "weighted"})),
    Variant("with an average of the weights", changed(ema=EMA)),
)
"""Each with another value of a setting."""

ABLATIONS = {"paper": PAPER, "levers": LEVERS}
"""Groups of ablations by the name under which they are asked for."""
