"""The sign and the size of the adversarial gradient: a step along it raises the score of what the model generates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.denoiser import Denoiser, Guided
from adt_plugin.core.diffusion.samplers import build_flow_sampler, build_sampler
from adt_plugin.core.run import state
from adt_plugin.core.turn import AdversarialTurn
from toys import SD_ALPHAS_CUMPROD, ToyDenoiser, toy_decode, toy_discriminator, toy_latents

STEPS = 4
SCHEDULES = [(name, kind) for name in ("ddim", "euler", "dpm++") for kind in ("epsilon", "v_prediction")]
SCHEDULES += [("flow", "velocity")]
EXPECTED_RISE = 1e-4
"""Of the mean score, by the gradient's own account: small enough for a straight line, and far above float64's rounding."""


def turn_for(name: str, kind: str, start: int, **options: object) -> AdversarialTurn:
    """A turn in float64 whose heads stay as they are, after a warm-up of two turns that collects the statistics."""
    fixed = {"warmup": 2, "steps": STEPS, "start_min": start / STEPS, "start_max": start / STEPS, "disc_lr": 0.0}
    config = ADTConfig(**fixed | {"balance": "none", "weight": 1.0, "grad_mask": "all"} | options)  # type: ignore[arg-type]
    flow = name == "flow"
    sampler = build_flow_sampler(3.0, "trailing") if flow else build_sampler(name, SD_ALPHAS_CUMPROD, kind, "trailing")
    discriminator = toy_discriminator(config.disc_type).double()
    turn = AdversarialTurn(config, sampler=sampler, decode=toy_decode, discriminator=discriminator)
    for seed in (11, 12):
        turn(ToyDenoiser(dtype=torch.float64), latents(seed))
    return turn


def latents(seed: int = 3) -> torch.Tensor:
    return toy_latents(seed=seed, dtype=torch.float64)


def plain(net: ToyDenoiser) -> Denoiser:
    return net


def guided(net: ToyDenoiser) -> Denoiser:
    return Guided(net, lambda x, t: net(x + 0.5, t), 3.0)


def rises(turn: AdversarialTurn, denoiser_of: Any = plain) -> tuple[float, float]:
    """How much the mean score rises, with the same draws, after a step along minus `p.grad`, and after the opposite step."""
    net = ToyDenoiser(dtype=torch.float64)
    before = state.capture(turn, turn.config)  # type: ignore[arg-type]
    score = turn(denoiser_of(net), latents()).scores.mean()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    length = EXPECTED_RISE / sum(float(g.square().sum()) for g in gradients)
    found = []
    for sign in (1, -1):
        moved = ToyDenoiser(dtype=torch.float64)
        with torch.no_grad():
            for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                parameter -= sign * length * gradient
        state.restore(turn, before)
        found.append(float(turn(denoiser_of(moved), latents()).scores.mean() - score))
    return found[0], found[1]


@pytest.mark.parametrize("memory", ["low", "fast"])
@pytest.mark.parametrize("start", [1, 3, STEPS])
@pytest.mark.parametrize(("name", "kind"), SCHEDULES)
def test_a_step_on_the_turns_gradient_alone_raises_the_score(name: str, kind: str, start: int, memory: str) -> None:
    up, down = rises(turn_for(name, kind, start, memory=memory))
    assert up > 0.1 * EXPECTED_RISE and down < -0.1 * EXPECTED_RISE


@pytest.mark.parametrize(("name", "kind"), SCHEDULES)
def test_from_the_last_step_the_score_rises_by_what_the_gradient_says(name: str, kind: str) -> None:
    """With a single step walked, no input is stopped that depends on the weights, so that the gradient is the whole one."""
    up, down = rises(turn_for(name, kind, start=1))
    assert up == pytest.approx(EXPECTED_RISE, rel=0.01) and down == pytest.approx(-EXPECTED_RISE, rel=0.01)


@pytest.mark.parametrize("disc_type", ["siamese", "unary"])
def test_the_score_rises_under_guidance_and_for_every_kind_of_discriminator(disc_type: str) -> None:
    for options in ({"start": 1}, {"start": STEPS}):
        up, down = rises(turn_for("ddim", "epsilon", disc_type=disc_type, **options), guided)
        assert up > 0.1 * EXPECTED_RISE and down < -0.1 * EXPECTED_RISE


def test_the_weight_multiplies_the_gradient() -> None:
    up, _ = rises(turn_for("ddim", "epsilon", start=1, weight=0.25))
    assert up == pytest.approx(4 * EXPECTED_RISE, rel=0.01)  # lambda g is a quarter of g, and so is what it promises per length
