"""What the benchmark compares beyond the demo: rivals, ablations of the paper's parts, and less work per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adt_plugin.core.diffusion.denoiser import Denoiser, call_seeded
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import Unroll, noised_start, unroll
from adt_plugin.demo import variants
from adt_plugin.demo.finetune import STRATEGIES
from adt_plugin.demo.variants import Variant, changed, diffusion_only


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


STRATEGIES["white noise"] = {"noised_start": white_noise_start}
STRATEGIES["unconstrained"] = {"unroll": unconstrained_unroll}

ALL_SAMPLERS = ("ddim", "euler", "dpm++")
FROZEN = {"disc_lr": 0.0, "warmup": 0}

BASE, DIFFUSION, ADT = (replace(v, samplers=ALL_SAMPLERS) for v in (variants.BASE, variants.DIFFUSION, variants.ADT))
FROZEN_HEADS = Variant("frozen untrained heads", changed(FROZEN))
SPARSE_ADT = Variant("ADT, a turn every third step", changed({"every": 3}))
SLOW_DIFFUSION = Variant("diffusion only, lr 3e-05", diffusion_only(3e-5))
FAST_DIFFUSION = Variant("diffusion only, lr 0.001", diffusion_only(1e-3))

ABLATIONS = (
    Variant("from white noise, no image-to-image", changed({"start_min": 1.0}, strategy="white noise")),
    Variant("no diffusion loss", changed(diffusion=False)),
    Variant("unary discriminator", changed({"disc_type": "unary"})),
    Variant("unconstrained backward path", changed(strategy="unconstrained")),
    Variant("no augmentation", changed({"augment": "none"})),
    Variant("noise 0.3 on the discriminator's inputs", changed({"noise": 0.3})),
    Variant("noise 0.3, frozen untrained heads", changed(FROZEN | {"noise": 0.3})),
    Variant("K = 1", changed({"grad_steps": 1})),
    Variant("last 2 steps instead of random ones", changed({"grad_mask": "last"})),
    Variant("weight / 3", changed({"weight": 0.5})),
    Variant("weight x 3", changed({"weight": 4.5})),
    Variant("10-step grid", changed({"steps": 10})),
)


def cost_candidate(every: int, steps: int, grad_steps: int, decode_crop: int = 0) -> Variant:
    """The reference with another amount of work per optimizer step; `decode_crop` in the miniature's 16x16 pixels."""
    name = f"every {every}, m = {steps}, K = {grad_steps}" + (f", crop {decode_crop}" if decode_crop else "")
    adt = {"every": every, "steps": steps, "grad_steps": grad_steps, "decode_crop": decode_crop}
    return Variant(name, changed(adt))


COST_CANDIDATES = (
    *(cost_candidate(every, steps, grad_steps) for every in (1, 2, 4, 8) for steps in (5, 10) for grad_steps in (1, 2)),
    *(cost_candidate(every, 10, 4) for every in (1, 2, 4)),
    *(cost_candidate(every, 5, 2, 8) for every in (1, 2, 4)),
    cost_candidate(2, 10, 2, 8),
)
"""What the defaults of `--adt_every`, `--adt_steps` and `--adt_grad_steps` are chosen among."""
