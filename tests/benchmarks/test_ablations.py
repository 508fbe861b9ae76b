"""What is compared, and how the ablations' turns walk."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from adt_plugin.core.diffusion import gradient_path
from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.diffusion.samplers import build_sampler
from adt_plugin.core.diffusion.unroll import Unroll, noised_start, unroll
from adt_plugin.demo.data import encode, load_splits
from adt_plugin.demo.diffusion import alphas_cumprod
from adt_plugin.demo.finetune import STRATEGIES, build_turn, tunable_copy
from adt_plugin.demo.models import UNet
from adt_plugin.demo.study import Study
from adt_plugin.demo.variants import ADT, BASE, PLAIN, changed, hurried
from benchmarks.ablations import FROZEN_TRIALS, LEVERS, PAPER, PLAIN_TRIALS, untrained, without_average

TRIALS = (*PLAIN_TRIALS, *FROZEN_TRIALS)
EVERYTHING = (BASE, ADT, *TRIALS, *map(without_average, TRIALS), *PAPER, *LEVERS)


def batch() -> tuple[Tensor, Tensor]:
    """Latents and labels of four digits."""
    train = load_splits().train
    return encode(train.images[:4]), train.labels[:4]


def gradients(unet: UNet) -> Tensor:
    return torch.cat([p.grad.flatten() for p in unet.parameters()])


def test_names_are_unique():
    assert len({variant.name for variant in EVERYTHING}) == len(EVERYTHING)


@pytest.mark.parametrize("variant", [*PAPER, *LEVERS, *FROZEN_TRIALS], ids=lambda variant: variant.name)
def test_every_ablation_changes_something(variant):
    assert variant.plan != ADT.plan


def test_a_hurried_variant_has_next_to_no_warm_up_and_is_otherwise_the_same():
    assert hurried(ADT).plan.adt == changed({"warmup": 2}).adt
    assert hurried(BASE) is BASE
    assert hurried(PLAIN) is PLAIN


def test_white_noise_starts_know_nothing_of_their_partner(tiny_study: Study):
    plan = next(variant.plan for variant in PAPER if "white noise" in variant.name)
    latents, labels = batch()
    images = []
    for scale in (1.0, -1.0):
        turn = build_turn(tiny_study.base, plan, seed=0)
        report = turn(lambda x, t: tiny_study.base.unet(x, t, labels), scale * latents)
        assert report.start == plan.adt.steps
        images.append(report.gen)
    assert torch.equal(*images)


def test_an_untrained_backbone_is_always_the_same_and_frozen(tiny_study: Study):
    shipped = tiny_study.base.backbone
    first, second = (untrained(shipped).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], value) for name, value in shipped.state_dict().items())
    plan = next(variant.plan for variant in PAPER if "backbone" in variant.name)
    turn = build_turn(tiny_study.base, plan, seed=0)
    assert not any(parameter.requires_grad for parameter in turn.discriminator.backbone.parameters())


@pytest.mark.parametrize("kind", ["unconstrained", "constrained"])
def test_only_the_unconstrained_path_has_the_gradient_of_the_whole_walk(tiny_study: Study, kind: str):
    """One route: autograd through all denoiser calls at once; the other: step by step, as a turn does it."""
    walk_path = STRATEGIES["unconstrained"]["unroll"] if kind == "unconstrained" else unroll
    latents, labels = batch()
    unet = tunable_copy(tiny_study.base.unet).double()
    denoiser = partial(unet, labels=labels)

    sampler = build_sampler("ddim", alphas_cumprod(), "epsilon", "leading")
    noised = noised_start(sampler, latents.double(), torch.randn_like(latents).double(), 5, 5)
    path = walk_path(denoiser, sampler, noised, list(range(5)), list(range(5)), True)
    gradient_path.replay(denoiser, path, dict(enumerate(gradient_path.leaf_gradients(path.latents.square().sum(), path))))
    stepwise = gradients(unet)

    unet.zero_grad()
    walk(denoiser, path.steps[0].model_input, path).square().sum().backward()
    error = (stepwise - gradients(unet)).norm() / stepwise.norm()
    assert error < 1e-10 if kind == "unconstrained" else error > 1e-3


def walk(denoiser: Denoiser, latents: Tensor, path: Unroll) -> Tensor:
    """The same path with one graph through everything."""
    sampler = build_sampler("ddim", alphas_cumprod(), "epsilon", "leading")
    sampler.prepare(len(path.steps), len(path.steps))
    for step in path.steps:
        latents = sampler.step(denoiser(latents, step.timestep.expand(len(latents))), step.timestep, latents)
    return latents
