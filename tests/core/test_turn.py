"""A whole turn on the toys: what it adds, what it leaves alone, what it says."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adt_plugin.core.diffusion.denoiser import Denoiser, Guided
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import Unroll, unroll
from adt_plugin.core.report import STAGES
from adt_plugin.core.turn import AdversarialTurn
from toys import ToyDenoiser, diffusion_backward, toy_decode, toy_latents, toy_turn


def one_step(turn: AdversarialTurn, net: ToyDenoiser, **keywords: object):  # noqa: ANN201
    """The host's gradient alone, the sum after the turn, and the report."""
    net.zero_grad()
    diffusion_backward(turn, net, toy_latents())
    before = net.gradients().clone()
    report = turn(net, toy_latents(), **keywords)
    return before, net.gradients(), report


def test_the_turn_adds_its_gradient_to_the_hosts() -> None:
    net = ToyDenoiser()
    before, after, report = one_step(toy_turn(), net)
    assert (after - before).norm() > 0
    assert all(p.grad is not None for p in net.parameters())
    assert report.grad_norm > 0 and not report.warmup and not report.skipped


def test_only_the_denoiser_and_the_heads_are_changed() -> None:
    net, turn = ToyDenoiser(), toy_turn()
    weights = [p.clone() for p in net.parameters()]
    backbone = [p.clone() for p in turn.discriminator.backbone._network.parameters()]
    heads = [p.clone() for p in turn.discriminator.parameters()]
    one_step(turn, net)
    assert all(
        torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True)
    )  # the host's optimizer steps, not the turn
    assert all(torch.equal(a, b) for a, b in zip(backbone, turn.discriminator.backbone._network.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(heads, turn.discriminator.parameters(), strict=True))


@pytest.mark.parametrize("options", [{"warmup": 30}, {"weight": 0.0}])
def test_in_the_warmup_and_with_weight_zero_only_the_discriminator_trains(options: dict[str, float]) -> None:
    net, turn = ToyDenoiser(), toy_turn(**options)
    heads = [p.clone() for p in turn.discriminator.parameters()]
    before, after, report = one_step(turn, net)
    assert torch.equal(before, after)
    assert report.grad_norm == 0 and report.grad_positions == [] and report.step_grad_norms == []
    assert not all(torch.equal(a, b) for a, b in zip(heads, turn.discriminator.parameters(), strict=True))


def test_the_warmup_s_last_turns_measure_the_gradient_and_apply_none_of_it() -> None:
    net, turn = ToyDenoiser(), toy_turn(warmup=3)
    before, after, report = one_step(turn, net)
    assert torch.equal(before, after)
    assert report.warmup and report.grad_norm == 0 and report.grad_positions == []
    assert float(turn.balance.adversarial.value) == pytest.approx(report.grad_norm_raw) and report.grad_norm_raw > 0


def test_the_warmup_ends_after_its_turns() -> None:
    turn, net = toy_turn(warmup=2), ToyDenoiser()
    assert [one_step(turn, net)[2].warmup for _ in range(4)] == [True, True, False, False]


def test_the_discriminator_learns_to_tell_noise_from_images() -> None:
    turn, net = toy_turn(weight=0.0, disc_lr=0.01, start_min=1.0), ToyDenoiser()
    losses = [one_step(turn, net)[2].loss_d for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


@pytest.mark.parametrize("balance", ["ratio", "cap"])
def test_the_applied_gradient_is_the_weights_share_of_the_diffusion_gradient(balance: str) -> None:
    report = one_step(toy_turn(weight=0.25, balance=balance), ToyDenoiser())[2]
    assert report.grad_norm == pytest.approx(0.25 * report.grad_norm_diffusion, rel=1e-4)


def test_the_watched_norm_is_that_of_the_gradient_at_the_output() -> None:
    turn, net = toy_turn(), ToyDenoiser()
    noise = toy_latents(seed=8)
    prediction = net(noise, torch.tensor([1, 1]))
    turn.watch(prediction, loss_scale=4.0)
    (4.0 * (prediction - noise).square().mean()).backward()
    expected = (2 * (prediction - noise) / prediction.numel()).norm().detach()
    torch.testing.assert_close(turn.balance.diffusion.value, expected)


def test_k_steps_of_the_path_are_replayed_and_no_more() -> None:
    turn, net = toy_turn(grad_steps=2, start_min=1.0), ToyDenoiser()
    net.calls = 0
    one_step(turn, net)
    assert net.calls == 1 + 5 + 2  # the host's own, the unroll, the replay


def test_kept_graphs_change_the_calls_of_a_turn_and_not_its_gradient() -> None:
    def after_a_turn(memory: str) -> tuple[torch.Tensor, int]:
        turn, net = toy_turn(grad_steps=2, start_min=1.0, memory=memory), ToyDenoiser(dropout=0.3).train()
        torch.manual_seed(0)  # of the dropout in the diffusion loss
        return one_step(turn, net)[1], net.calls

    (low, low_calls), (fast, fast_calls) = after_a_turn("low"), after_a_turn("fast")
    assert (low_calls, fast_calls) == (1 + 5 + 2, 1 + 5)
    torch.testing.assert_close(fast, low, rtol=1e-4, atol=1e-6)


def guided(net: ToyDenoiser, scale: float) -> Guided:
    return Guided(net, lambda x, t: net(x + 0.5, t), scale)


@pytest.mark.parametrize("memory", ["low", "fast"])
def test_all_of_a_turn_is_guided_with_the_scale_that_it_has_drawn_and_reports(memory: str) -> None:
    """Bit for bit what a turn does at that scale alone; nothing else is drawn here from the path's generator."""
    options: dict[str, object] = {"grad_mask": "all", "start_min": 1.0, "memory": memory}
    turn, net, other = toy_turn(cfg_scale="2:7", **options), ToyDenoiser(), ToyDenoiser()
    diffusion_backward(turn, net, toy_latents())
    report = turn(guided(net, 1.0), toy_latents(), unroll_denoiser=guided(net, 1.0))
    assert 2 < report.cfg_scale < 7
    fixed = toy_turn(**options)
    diffusion_backward(fixed, other, toy_latents())
    assert fixed(guided(other, report.cfg_scale), toy_latents()).cfg_scale == report.cfg_scale
    assert torch.equal(net.gradients(), other.gradients())


def test_every_turn_draws_its_own_scale() -> None:
    turn, net = toy_turn(cfg_scale="1:7", weight=0.0), ToyDenoiser()
    scales = [turn(guided(net, 4.0), toy_latents()).cfg_scale for _ in range(20)]
    assert len(set(scales)) == 20 and 1 <= min(scales) < 3 and 5 < max(scales) <= 7


def test_a_turn_without_guidance_reports_a_scale_of_one() -> None:
    assert one_step(toy_turn(), ToyDenoiser())[2].cfg_scale == 1.0


def test_kept_graphs_are_made_by_the_denoiser_and_the_others_by_its_cheaper_form() -> None:
    turn, net, cheap = toy_turn(grad_steps=2, start_min=1.0, memory="fast"), ToyDenoiser(), ToyDenoiser()
    one_step(turn, net, unroll_denoiser=cheap)
    assert (net.calls, cheap.calls) == (1 + 2, 3)


def test_in_the_warmup_no_graph_is_kept() -> None:
    turn, net = toy_turn(warmup=1, memory="fast"), ToyDenoiser()
    before, after, _ = one_step(turn, net)
    assert torch.equal(before, after)


def test_starts_cover_the_configured_range() -> None:
    turn, net = toy_turn(start_min=0.4, start_max=0.8), ToyDenoiser()
    assert {one_step(turn, net)[2].start for _ in range(40)} == {2, 3, 4}


def test_only_timesteps_in_the_trained_range_carry_gradient() -> None:
    turn, net = toy_turn(grad_mask="all", start_min=1.0), ToyDenoiser()
    turn.timestep_range = (200, 500)  # the grid is 801, 601, 401, 201, 1
    assert one_step(turn, net)[2].grad_positions == [2, 3]
    turn.timestep_range = (900, 1000)
    usual = turn.balance.adversarial.value.clone()
    before, after, report = one_step(turn, net)
    assert report.grad_positions == [] and torch.equal(before, after) and not report.skipped
    assert torch.equal(turn.balance.adversarial.value, usual)  # a turn without a gradient is not remembered as a small one


def test_the_trained_range_includes_its_lower_end_and_not_its_upper() -> None:
    turn, net = toy_turn(grad_mask="all", start_min=1.0), ToyDenoiser()
    for trained, positions in {(200, 401): [3], (201, 402): [2, 3], (202, 801): [1, 2], (801, 802): [0]}.items():
        turn.timestep_range = trained  # the grid is 801, 601, 401, 201, 1
        assert one_step(turn, net)[2].grad_positions == positions


def test_the_heads_are_trained_as_the_options_say() -> None:
    """AdamW's first steps are those of the given betas, without weight decay."""
    turn, net = toy_turn(disc_betas="0.3,0.7", disc_lr=0.01), ToyDenoiser()
    named = {name: parameter for name, parameter in turn.discriminator.named_parameters() if "layers" in name}
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    copies = [tensor.clone().requires_grad_(True) for tensor in before.values()]
    expected = torch.optim.AdamW(copies, lr=0.01, betas=(0.3, 0.7), weight_decay=0.0)

    def note(*args: object) -> None:
        for copy, parameter in zip(copies, named.values(), strict=True):
            assert parameter.grad is not None
            copy.grad = parameter.grad.clone()
        expected.step()

    turn.optimizer.register_step_pre_hook(note)
    for _ in range(3):
        one_step(turn, net)
    for copy, parameter in zip(copies, named.values(), strict=True):
        torch.testing.assert_close(parameter, copy)
    assert not any(torch.equal(before[name], parameter) for name, parameter in named.items())


def test_a_turn_every_n_steps_and_in_every_step_of_the_warmup() -> None:
    turn = toy_turn(every=3, warmup=2)
    assert all(turn.due(step) for step in range(7))
    turn.turns = 2
    assert [step for step in range(7) if turn.due(step)] == [0, 3, 6]


def test_the_global_generators_are_left_as_they_were_found() -> None:
    turn, net = toy_turn(), ToyDenoiser(dropout=0.3).train()
    diffusion_backward(turn, net, toy_latents())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    turn(net, toy_latents())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not() -> None:
    def rows(seed: int) -> list[tuple[float, ...]]:
        turn, net = toy_turn(seed=seed), ToyDenoiser()
        return [(r.loss_g, r.loss_d, r.grad_norm) for r in (one_step(turn, net)[2] for _ in range(3))]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_real_images_may_be_given() -> None:
    real = torch.full((2, 3, 16, 16), 0.5)
    assert one_step(toy_turn(), ToyDenoiser(), real=real)[2].real.data_ptr() == real.data_ptr()
    decoded = one_step(toy_turn(), ToyDenoiser())[2].real
    torch.testing.assert_close(decoded, toy_decode(toy_latents()))


def test_a_crop_shows_the_same_window_of_both_images() -> None:
    """With a denoiser that predicts nothing, generated and real images differ by noise alone: their windows must agree."""
    turn = toy_turn(decode_crop=8, start_min=0.0, start_max=0.2, seed=3)
    turn.latent_pixels = 2
    decoded = []
    turn.decode = lambda latents: decoded.append(latents.detach()) or toy_decode(latents)
    latents = torch.arange(64.0).view(1, 1, 8, 8).expand(2, 4, 8, 8) * 1e3
    net = ToyDenoiser()
    diffusion_backward(turn, net, latents)
    report = turn(net, latents)
    assert report.gen.shape == report.real.shape == (2, 3, 8, 8)
    real, gen = decoded  # in this order
    assert any(torch.equal(real, latents[..., i : i + 4, j : j + 4]) for i in range(5) for j in range(5))
    torch.testing.assert_close(gen, real, rtol=0.05, atol=100)


def walked_back_to_the_image(turn: AdversarialTurn) -> AdversarialTurn:
    """The same turn, whose path begins at x_0 and ends there exactly, with all its outputs."""

    def from_the_image(sampler: Sampler, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
        sampler.prepare(steps, start)
        return clean

    def back_to_the_image(denoiser: Denoiser, sampler: Sampler, latents: Tensor, *rest: Any) -> Unroll:
        path = unroll(denoiser, sampler, latents, *rest)
        return Unroll(latents + 0 * path.latents, path.steps)

    turn.noised_start, turn.unroll = from_the_image, back_to_the_image
    return turn


@pytest.mark.parametrize("options", [{}, {"weight": 0.0}, {"decode_crop": 0}])
def test_a_path_that_ends_at_the_image_generates_the_real_one_at_the_same_place(options: dict[str, Any]) -> None:
    turn, net = walked_back_to_the_image(toy_turn(**{"decode_crop": 8} | options)), ToyDenoiser()
    turn.latent_pixels = 2
    pictures = set()
    for _ in range(12):
        diffusion_backward(turn, net, toy_latents())
        report = turn(net, toy_latents())
        torch.testing.assert_close(report.gen, report.real)
        pictures.add(tuple(report.real.flatten().tolist()))
    assert len(pictures) == 1 if turn.config.decode_crop == 0 else len(pictures) > 6  # a new place in every turn


def test_a_crop_of_given_images_is_the_window_of_the_generated_ones() -> None:
    def real_of(**keywords: torch.Tensor) -> torch.Tensor:
        turn = toy_turn(decode_crop=8)
        turn.latent_pixels = 2
        return one_step(turn, ToyDenoiser(), **keywords)[2].real

    torch.testing.assert_close(real_of(real=toy_decode(toy_latents())), real_of())


def test_a_crop_larger_than_the_image_changes_nothing() -> None:
    whole, cropped = (one_step(toy_turn(decode_crop=side), ToyDenoiser())[1] for side in (0, 64))
    assert torch.equal(whole, cropped)


def test_a_gradient_that_is_not_finite_is_dropped() -> None:
    turn, net = toy_turn(), ToyDenoiser()
    turn.decode = lambda latents: toy_decode(latents) if latents.grad_fn is None else toy_decode(latents) * float("inf")
    before, after, report = one_step(turn, net)
    assert report.skipped and torch.equal(before, after)
    assert all(torch.isfinite(p).all() for p in turn.discriminator.parameters())
    turn.decode = toy_decode
    assert one_step(turn, net)[2].grad_norm > 0  # the next turn works


def test_a_denoiser_that_overflows_spoils_neither_its_gradient_nor_the_heads() -> None:
    """A replay, even with a vector of zeros, would multiply it by infinite activations."""
    turn, net = toy_turn(start_min=1.0), ToyDenoiser()
    net.zero_grad()
    diffusion_backward(turn, net, toy_latents())
    before = net.gradients().clone()
    with torch.no_grad():
        net.last.bias.fill_(float("inf"))
    report = turn(net, toy_latents())
    assert report.skipped and torch.equal(net.gradients(), before)
    assert all(torch.isfinite(p).all() for p in turn.discriminator.parameters())


def test_the_unary_ablation_runs() -> None:
    before, after, report = one_step(toy_turn(disc_type="unary"), ToyDenoiser())
    assert (after - before).norm() > 0 and report.loss_d > 0


def test_a_step_norm_is_reported_for_every_step_walked() -> None:
    report = one_step(toy_turn(start_min=1.0, grad_steps=1), ToyDenoiser())[2]
    assert len(report.step_grad_norms) == report.start == 5
    assert report.step_grad_norms[report.grad_positions[0]] == pytest.approx(report.grad_norm_raw)
    assert report.step_grad_norms[0] > report.step_grad_norms[-1]  # the early steps weigh more (method.md)


def test_stages_are_timed_on_demand() -> None:
    assert one_step(toy_turn(), ToyDenoiser())[2].seconds == {}
    assert set(one_step(toy_turn(profile=True), ToyDenoiser())[2].seconds) == set(STAGES)


def test_every_report_is_made_of_plain_numbers() -> None:
    report = one_step(toy_turn(), ToyDenoiser())[2]
    assert all(
        isinstance(getattr(report, name), float) for name in ("loss_g", "loss_d", "score_real", "score_gen", "grad_norm")
    )
    assert report.loss_g == pytest.approx(-float(report.scores.mean()))


def test_the_turn_works_in_an_accelerate_loop_with_accumulation() -> None:
    """The documented loop: gradients of two micro-steps are divided by two, as the diffusion loss's own are."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, turn = ToyDenoiser(), toy_turn(balance="ratio", weight=0.5)
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
    weights = [p.clone() for p in net.parameters()]
    for _ in range(2):
        with accelerator.accumulate(net):
            prediction = net(toy_latents(seed=4), torch.tensor([300, 300]))
            turn.watch(prediction, loss_scale=1 / accelerator.gradient_accumulation_steps)
            accelerator.backward(nn.functional.mse_loss(prediction, toy_latents(seed=5)))
            report = turn(net, toy_latents(), backward=accelerator.backward)
            assert report.grad_norm == pytest.approx(0.5 * report.grad_norm_diffusion, rel=1e-4)
            optimizer.step()
            optimizer.zero_grad()
    assert not any(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
