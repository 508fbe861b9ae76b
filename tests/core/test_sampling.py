"""Grid, image-to-image start and unroll over diffusers schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from adt_plugin.core.diffusion.denoiser import Guided
from adt_plugin.core.diffusion.samplers import ALMOST_ZERO, FlowSampler, build_flow_sampler, build_sampler
from adt_plugin.core.diffusion.unroll import noised_start, unroll
from adt_plugin.core.errors import ConfigError
from toys import SD_ALPHAS_CUMPROD, ToyDenoiser, toy_latents

SAMPLERS = ("ddim", "euler", "dpm++")


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 2305.08891."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def oracle(alphas_cumprod: Tensor, clean: Tensor, noise: Tensor, prediction_type: str):  # noqa: ANN201
    """The denoiser that makes the training loss zero on this pair of image and noise."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        alpha = alphas_cumprod[t.long()].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alphas_cumprod[t.long()]).sqrt().view(-1, 1, 1, 1)
        return noise if prediction_type == "epsilon" else alpha * noise - sigma * clean

    return predict


@pytest.mark.parametrize("start", [1, 2, 5, 10])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_oracle_denoiser_brings_every_start_back_to_the_image(
    name: str, prediction_type: str, spacing: str, start: int
) -> None:
    sampler = build_sampler(name, SD_ALPHAS_CUMPROD, prediction_type, spacing)
    clean, noise = toy_latents(seed=1), toy_latents(seed=2)
    noised = noised_start(sampler, clean, noise, 10, start)
    path = unroll(oracle(SD_ALPHAS_CUMPROD, clean, noise, prediction_type), sampler, noised, [0] * start, [], record=False)
    assert len(path.steps) == start
    torch.testing.assert_close(path.latents, clean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("start", [1, 5, 20])
def test_no_noise_is_left_where_the_schedulers_own_grid_ends_with_some(monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    """As diffusers 0.25 lays it, which left .084 in x_0; also where its last step would be of the second order."""
    laid = DPMSolverMultistepScheduler.set_timesteps

    def with_noise_at_its_end(scheduler: DPMSolverMultistepScheduler, *args: object, **kwargs: object) -> None:
        laid(scheduler, *args, **kwargs)
        scheduler.sigmas[-1] = float(((1 - SD_ALPHAS_CUMPROD[0]) / SD_ALPHAS_CUMPROD[0]) ** 0.5)

    monkeypatch.setattr(DPMSolverMultistepScheduler, "set_timesteps", with_noise_at_its_end)
    sampler = build_sampler("dpm++", SD_ALPHAS_CUMPROD, "epsilon")
    clean, noise = toy_latents(seed=1), toy_latents(seed=2)
    noised = noised_start(sampler, clean, noise, 20, start)
    path = unroll(oracle(SD_ALPHAS_CUMPROD, clean, noise, "epsilon"), sampler, noised, [0] * start, [], record=False)
    torch.testing.assert_close(path.latents, clean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_terminal_snr_starts_at_the_last_timestep_and_returns(name: str) -> None:
    alphas_cumprod = zero_terminal_snr(SD_ALPHAS_CUMPROD)
    assert float(alphas_cumprod[-1]) == 0.0
    sampler = build_sampler(name, alphas_cumprod, "v_prediction")
    clean, noise = toy_latents(seed=1), toy_latents(seed=2)
    noised = noised_start(sampler, clean, noise, 5, 5)
    path = unroll(oracle(alphas_cumprod, clean, noise, "v_prediction"), sampler, noised, [0] * 5, [], record=False)
    assert float(path.steps[0].timestep) == 999
    torch.testing.assert_close(path.latents, clean, atol=5e-3, rtol=0)  # Euler carries sigma = 4096 in float32


def test_the_schedule_is_the_models_own_not_a_round_trip() -> None:
    alphas_cumprod = zero_terminal_snr(SD_ALPHAS_CUMPROD)
    assert torch.equal(build_sampler("ddim", alphas_cumprod, "v_prediction").scheduler.alphas_cumprod, alphas_cumprod)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_models_own_schedule_is_neither_changed_nor_shared(name: str) -> None:
    alphas_cumprod = zero_terminal_snr(SD_ALPHAS_CUMPROD)
    before = alphas_cumprod.clone()
    sampler = build_sampler(name, alphas_cumprod, "v_prediction")
    assert torch.equal(alphas_cumprod, before)  # samplers that divide by alpha raise its end in their own copy
    alphas_cumprod.zero_()
    assert float(sampler.scheduler.alphas_cumprod[0]) > 0.99


def test_what_stands_for_a_terminal_alpha_of_zero_is_diffusers_own() -> None:
    own = EulerDiscreteScheduler(rescale_betas_zero_snr=True)
    assert float(own.alphas_cumprod[-1]) == ALMOST_ZERO


def test_the_start_is_the_image_noised_to_its_timestep() -> None:
    sampler = build_sampler("ddim", SD_ALPHAS_CUMPROD, "epsilon")
    clean, noise = toy_latents(seed=1), toy_latents(seed=2)
    alpha_bar = SD_ALPHAS_CUMPROD[401]  # leading, offset 1: 901, 801, ... 1
    torch.testing.assert_close(
        noised_start(sampler, clean, noise, 10, 5), alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    )


def test_only_the_starts_share_of_the_grid_is_walked() -> None:
    sampler, net = build_sampler("ddim", SD_ALPHAS_CUMPROD, "epsilon"), ToyDenoiser()
    path = unroll(net, sampler, noised_start(sampler, toy_latents(), toy_latents(), 10, 3), [1, 2, 3], [1], record=True)
    assert net.calls == 3
    assert [int(step.timestep) for step in path.steps] == [201, 101, 1]
    assert [step.model_input is not None for step in path.steps] == [False, True, False]
    assert all(step.output.is_leaf and step.output.requires_grad for step in path.steps)


def test_half_precision_latents_are_sampled_in_float32() -> None:
    sampler = build_sampler("ddim", SD_ALPHAS_CUMPROD, "epsilon")
    start = noised_start(sampler, toy_latents(), toy_latents(), 4, 2)
    path = unroll(lambda x, t: x.to(torch.bfloat16), sampler, start, [0, 0], [], record=False)
    assert path.latents.dtype == path.steps[0].output.dtype == torch.float32


def test_noise_prediction_from_zero_snr_is_refused() -> None:
    with pytest.raises(ConfigError, match="use a model that predicts v"):
        build_sampler("ddim", zero_terminal_snr(SD_ALPHAS_CUMPROD), "epsilon")


def test_ddim_with_linspace_is_refused() -> None:
    with pytest.raises(ConfigError, match="--adt_spacing linspace"):
        build_sampler("ddim", SD_ALPHAS_CUMPROD, "epsilon", "linspace")


def test_a_grid_that_ddim_cannot_walk_exactly_is_refused() -> None:
    sampler = build_sampler("ddim", SD_ALPHAS_CUMPROD, "epsilon", "trailing")
    sampler.check_grid(8)
    with pytest.raises(ConfigError, match="--adt_steps must divide 1000"):
        sampler.check_grid(7)


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_a_grid_without_distinct_timesteps_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--adt_steps 1000 gives this sampler no grid"):
        build_sampler(name, SD_ALPHAS_CUMPROD, "epsilon").check_grid(1000)


def test_the_flow_matching_grid_is_accepted() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowSampler(FlowMatchEulerDiscreteScheduler(shift=3.0)).check_grid(10)


def test_more_steps_than_timesteps_are_refused() -> None:
    sampler = build_sampler("ddim", SD_ALPHAS_CUMPROD[:100], "epsilon")
    with pytest.raises(ConfigError, match="--adt_steps must be at most 100"):
        sampler.check_grid(101)


@pytest.mark.parametrize("start", [1, 3, 8])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_grid_starts_at_noise_and_an_oracle_returns(shift: float, spacing: str, start: int) -> None:
    sampler = build_flow_sampler(shift, spacing)
    sampler.check_grid(8)
    clean, noise = toy_latents(seed=1), toy_latents(seed=2)
    noised = noised_start(sampler, clean, noise, 8, start)
    path = unroll(lambda x, t: noise - clean, sampler, noised, [0] * start, [], record=False)
    torch.testing.assert_close(path.latents, clean, atol=1e-5, rtol=0)
    assert float(sampler.timesteps[0]) == 1000.0


def test_flow_grids_are_those_of_the_pipelines() -> None:
    """Diffusers' own grid for SD3 (linspace, shift 3), FLUX's even one (trailing), and a shift changed in between."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own.set_timesteps(6)
    sampler = build_flow_sampler(3.0, "linspace")
    sampler.prepare(6, 6)
    torch.testing.assert_close(sampler.scheduler.sigmas, own.sigmas)
    even = build_flow_sampler(1.0, "trailing")
    even.prepare(4, 4)
    torch.testing.assert_close(even.scheduler.sigmas, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    even.shift = 3.0
    even.prepare(2, 2)
    torch.testing.assert_close(even.scheduler.sigmas, torch.tensor([1.0, 0.75, 0.0]))


def test_guidance_extrapolates_from_the_unconditional_prediction() -> None:
    conditional, unconditional = toy_latents(seed=1), toy_latents(seed=2)
    guided = Guided(lambda x, t: conditional, lambda x, t: unconditional, 7.5)
    expected = unconditional + 7.5 * (conditional - unconditional)
    torch.testing.assert_close(guided(conditional, torch.zeros(2)), expected)
    sampler = build_flow_sampler(1.0, "trailing")
    noised = noised_start(sampler, toy_latents(), toy_latents(seed=4), 4, 1)
    path = unroll(guided, sampler, noised, [0], [], record=False)
    torch.testing.assert_close(path.steps[0].output, expected)
