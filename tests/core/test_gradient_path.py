"""The exact replay against full autograd, and its constant memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adt_plugin.core.diffusion.denoiser import Guided
from adt_plugin.core.diffusion.gradient_path import (
    GRAD_MASKS,
    Candidate,
    choose_grad_positions,
    leaf_gradients,
    replay,
)
from adt_plugin.core.diffusion.samplers import build_flow_sampler, build_sampler
from adt_plugin.core.diffusion.unroll import noised_start, unroll
from adt_plugin.core.rng import preserved_rng, seed_everything
from toys import SD_ALPHAS_CUMPROD, ToyDenoiser, toy_decode, toy_latents

STEPS, START = 8, 6
SCHEDULES = [(name, kind) for name in ("ddim", "euler", "dpm++") for kind in ("epsilon", "v_prediction")] + [
    ("flow", "velocity")
]
RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-4}


def sampler_for(name: str, kind: str) -> Any:
    return build_flow_sampler(3.0, "trailing") if name == "flow" else build_sampler(name, SD_ALPHAS_CUMPROD, kind)


def loss_of(latents: Tensor) -> Tensor:
    """A nonlinear loss of the final latents, through a decoder."""
    images = toy_decode(latents)
    return (
        images.square() * torch.linspace(-1, 1, images.numel(), dtype=images.dtype).view_as(images)
    ).sum() + images.sin().sum()


def by_replay(net: ToyDenoiser, sampler: Any, latents: Tensor, seeds: list[int], mask: list[int]) -> Tensor:
    path = unroll(net, sampler, latents, seeds, mask, record=True)
    gradients = leaf_gradients(loss_of(path.latents), path)
    replay(net, path, {i: gradients[i] for i in mask})
    return net.gradients()


def by_kept_graphs(net: ToyDenoiser, sampler: Any, latents: Tensor, seeds: list[int], mask: list[int]) -> Tensor:
    """As `by_replay`, but nothing is run twice."""
    path = unroll(net, sampler, latents, seeds, mask, record=True, graph_denoiser=net)
    gradients = leaf_gradients(loss_of(path.latents), path)
    calls = net.calls
    replay(net, path, {i: gradients[i] for i in mask})
    assert net.calls == calls == len(seeds)
    return net.gradients()


def by_full_autograd(
    net: ToyDenoiser, sampler: Any, latents: Tensor, seeds: list[int], mask: list[int], stopped: bool = True
) -> Tensor:
    """The whole unroll kept in one graph; unmasked outputs are cut, inputs are stopped unless said otherwise."""
    for position, timestep in enumerate(sampler.timesteps[-len(seeds) :]):
        scaled = sampler.scale_model_input(latents, timestep)
        seed_everything(seeds[position])
        output = net(scaled.detach() if stopped else scaled, timestep.expand(len(latents)))
        latents = sampler.step(output if position in mask else output.detach(), timestep, latents)
    loss_of(latents).backward()
    return net.gradients()


Route = Callable[[ToyDenoiser, Any, Tensor, list[int], list[int]], Tensor]


def two_routes(
    name: str,
    kind: str,
    mask: list[int],
    dtype: torch.dtype,
    dropout: float = 0.0,
    route: Route = by_replay,
    **full: bool,
) -> tuple[Tensor, Tensor]:
    results = []
    for compute in (route, lambda *a: by_full_autograd(*a, **full)):
        net, sampler = ToyDenoiser(dropout, dtype), sampler_for(name, kind)
        start = noised_start(sampler, toy_latents(dtype=dtype), toy_latents(seed=4, dtype=dtype), STEPS, START)
        with preserved_rng():
            results.append(compute(net, sampler, start, list(range(100, 100 + START)), mask))
    return results[0], results[1]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("mask", [[0], [5], [1, 4], [0, 2, 3], [0, 1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize(("name", "kind"), SCHEDULES)
def test_replay_equals_full_autograd_with_stopped_inputs(name: str, kind: str, mask: list[int], dtype: torch.dtype) -> None:
    replayed, full = two_routes(name, kind, mask, dtype)
    assert full.norm() > 0
    assert relative_error(replayed, full) < RELATIVE[dtype]


@pytest.mark.parametrize("mask", [[0], [1, 4], [0, 1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize(("name", "kind"), SCHEDULES)
def test_kept_graphs_give_the_gradient_of_the_replay(name: str, kind: str, mask: list[int]) -> None:
    """With dropout, which the two calls of a replay must share, and with the inputs stopped."""
    kept, full = two_routes(name, kind, mask, torch.float64, dropout=0.3, route=by_kept_graphs)
    assert relative_error(kept, full) < RELATIVE[torch.float64]
    replayed, full = two_routes(name, kind, mask, torch.float64, dropout=0.3)
    assert relative_error(replayed, full) < RELATIVE[torch.float64]


@pytest.mark.parametrize("kind", GRAD_MASKS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_mask_kind_gives_the_gradient_of_its_steps(kind: str, count: int) -> None:
    mask = choose_grad_positions(kind, evenly_weighed(range(START)), count, torch.Generator().manual_seed(count))
    replayed, full = two_routes("ddim", "epsilon", mask, torch.float64)
    assert relative_error(replayed, full) < 1e-10


def test_dropout_is_the_same_in_unroll_and_replay() -> None:
    replayed, full = two_routes("ddim", "epsilon", [1, 3], torch.float64, dropout=0.5)
    assert relative_error(replayed, full) < 1e-10


@pytest.mark.parametrize(("name", "kind"), SCHEDULES)
def test_with_inputs_not_stopped_the_gradient_is_another(name: str, kind: str) -> None:
    replayed, unstopped = two_routes(name, kind, list(range(START)), torch.float64, stopped=False)
    assert relative_error(replayed, unstopped) > 1e-3


def test_reentrant_checkpointing_changes_no_gradient() -> None:
    """Its outputs have a graph only where an input has one: the parameters alone give none."""

    class Checkpointed(ToyDenoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return checkpoint(super().forward, x, t, use_reentrant=True) if torch.is_grad_enabled() else super().forward(x, t)

    gradients, sampler = [], sampler_for("ddim", "epsilon")
    start = noised_start(sampler, toy_latents(dtype=torch.float64), toy_latents(seed=4, dtype=torch.float64), STEPS, START)
    for kind in (ToyDenoiser, Checkpointed):
        with preserved_rng():
            gradients.append(by_replay(kind(dtype=torch.float64), sampler, start, list(range(START)), [0, 3]))
    assert relative_error(gradients[1], gradients[0]) < 1e-10


def test_a_step_that_was_not_kept_cannot_be_replayed() -> None:
    sampler, net = sampler_for("ddim", "epsilon"), ToyDenoiser()
    path = unroll(net, sampler, noised_start(sampler, toy_latents(), toy_latents(), 4, 2), [0, 0], [0], record=True)
    with pytest.raises(ValueError, match="step 1 was not kept"):
        replay(net, path, {1: torch.ones_like(path.latents)})


def test_replay_uses_the_hosts_backward() -> None:
    """A backward that multiplies the loss, as a gradient scaler does, multiplies the gradient."""
    results = []
    for factor in (1.0, 8.0):
        net, sampler = ToyDenoiser(dtype=torch.float64), sampler_for("ddim", "epsilon")
        start = noised_start(sampler, toy_latents(dtype=torch.float64), toy_latents(seed=4, dtype=torch.float64), 4, 2)
        path = unroll(net, sampler, start, [0, 0], [0, 1], record=True)
        gradients = leaf_gradients(loss_of(path.latents), path)
        replay(net, path, dict(enumerate(gradients)), backward=lambda loss, factor=factor: (loss * factor).backward())
        results.append(net.gradients())
    torch.testing.assert_close(results[1], 8 * results[0])


# Masks


def evenly_weighed(positions: Iterable[int]) -> list[Candidate]:
    return [Candidate(position, 1.0) for position in positions]


@pytest.mark.parametrize("kind", GRAD_MASKS)
@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("candidates", [[0], [2, 3], [0, 1, 2, 3, 4, 5, 6]], ids=str)
def test_a_mask_is_an_ordered_subset_of_the_right_size(kind: str, count: int, candidates: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        mask = choose_grad_positions(kind, evenly_weighed(candidates), count, generator)
        assert mask == sorted(set(mask)) and set(mask) <= set(candidates)
        assert len(mask) == (len(candidates) if kind == "all" else min(count, len(candidates)))


@pytest.mark.parametrize("kind", GRAD_MASKS)
def test_a_mask_is_drawn_from_the_given_generator_alone(kind: str) -> None:
    def drawn(global_seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(7)
        torch.manual_seed(global_seed)
        return [choose_grad_positions(kind, evenly_weighed(range(9)), 2, generator) for _ in range(8)]

    assert drawn(1) == drawn(2)


def test_no_candidates_give_no_mask() -> None:
    assert choose_grad_positions("random", [], 2, torch.Generator()) == []


def test_last_takes_the_last_and_random_and_even_reach_every_step() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates = evenly_weighed(range(6))
    assert choose_grad_positions("last", candidates, 2, generator) == [4, 5]
    for kind in ("random", "even", "weighted"):
        assert {i for _ in range(200) for i in choose_grad_positions(kind, candidates, 2, generator)} == set(range(6))


def test_weighted_draws_steps_by_what_they_count_for() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates = [Candidate(0, 3.0), Candidate(1, 1.0), Candidate(4, 0.0)]
    drawn = [i for _ in range(2000) for i in choose_grad_positions("weighted", candidates, 1, generator)]
    assert drawn.count(0) / len(drawn) == pytest.approx(0.75, abs=0.04)
    assert drawn.count(4) == 0
    assert choose_grad_positions("weighted", candidates[2:], 1, generator) == [4]  # where there is no other


@pytest.mark.parametrize(("name", "kind"), SCHEDULES)
def test_a_step_s_weight_is_what_its_output_counts_for_in_the_image(name: str, kind: str) -> None:
    """Against a walk with latents of full size: x_0' moves by the weight when one output moves by one."""
    sampler = sampler_for(name, kind)
    sampler.prepare(STEPS, START)
    weights = sampler.output_weights(START)

    def end(moved: int | None) -> Tensor:
        sampler.prepare(STEPS, START)
        latents = torch.full((1, 4, 2, 2), 0.3)
        for position, timestep in enumerate(sampler.timesteps[len(sampler.timesteps) - START :]):
            latents = sampler.step(torch.full((1, 4, 2, 2), 0.1 + (position == moved)), timestep, latents)
        return latents

    still = end(None)
    for position, weight in enumerate(weights):
        torch.testing.assert_close((end(position) - still).abs().mean().item(), weight, rtol=1e-3, atol=1e-5)


# Memory


class LiveBytes:
    """Bytes of tensors that autograd keeps alive for backward, now and at most (a saved-tensors hook)."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def measure(self, work: Callable[[], object]) -> int:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda box: box.tensor):
            work()
        return self.peak

    def _pack(self, tensor: Tensor) -> Any:
        box = type("Box", (), {"tensor": tensor.detach()})()  # a saved output would hold its own graph
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(box, self._free, size)
        return box

    def _free(self, size: int) -> None:
        self.now -= size


def peak_of_a_path(route: Callable[..., Tensor], count: int) -> int:
    net, sampler = ToyDenoiser(width=256), sampler_for("ddim", "epsilon")  # the network outweighs everything else
    start = noised_start(sampler, toy_latents(), toy_latents(seed=4), STEPS, STEPS)
    return LiveBytes().measure(lambda: route(net, sampler, start, [0] * STEPS, list(range(count))))


def test_memory_does_not_grow_with_the_number_of_replayed_steps() -> None:
    one, eight = peak_of_a_path(by_replay, 1), peak_of_a_path(by_replay, 8)
    assert eight == one > 0
    for growing in (by_full_autograd, by_kept_graphs):
        assert peak_of_a_path(growing, 8) > 2 * peak_of_a_path(growing, 1)


def test_a_kept_graph_is_freed_as_soon_as_it_has_been_pulled_back() -> None:
    net, sampler = ToyDenoiser(), sampler_for("ddim", "epsilon")
    start = noised_start(sampler, toy_latents(), toy_latents(seed=4), STEPS, 3)
    path = unroll(net, sampler, start, [0] * 3, [0, 2], record=True, graph_denoiser=net)
    assert [step.graph_output is not None for step in path.steps] == [True, False, True]
    alive = []
    ones = {i: torch.ones_like(path.latents) for i in (0, 2)}
    replay(net, path, ones, lambda loss: alive.append([step.graph_output is not None for step in path.steps]))
    assert alive == [[False, False, True], [False, False, False]]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_guidance_is_trained_through_the_conditional_prediction(dropout: float) -> None:
    """Against one graph through the combined output; both predictions see the same dropout."""

    def guided(net: ToyDenoiser) -> Guided:
        return Guided(lambda x, t: net(x, t), lambda x, t: net(x + 0.5, t), 3.0)

    def combined(net: ToyDenoiser) -> Callable[[Tensor, Tensor], Tensor]:
        def denoiser(x: Tensor, t: Tensor) -> Tensor:
            state = torch.get_rng_state()
            conditional = net(x, t)
            torch.set_rng_state(state)
            with torch.no_grad():
                unconditional = net(x + 0.5, t)
            return unconditional + 3.0 * (conditional - unconditional)

        return denoiser

    results, backwards = [], 0

    def counted(loss: Tensor) -> None:
        nonlocal backwards
        backwards += 1
        loss.backward()

    for denoiser_of in (guided, combined):
        net, sampler = ToyDenoiser(dropout, torch.float64), sampler_for("ddim", "epsilon")
        clean, noise = (toy_latents(seed=seed, dtype=torch.float64) for seed in (3, 4))
        start = noised_start(sampler, clean, noise, STEPS, START)
        with preserved_rng():
            path = unroll(denoiser_of(net), sampler, start, list(range(START)), [1, 4], record=True)
            gradients = leaf_gradients(loss_of(path.latents), path)
            replay(denoiser_of(net), path, {i: gradients[i] for i in (1, 4)}, counted)
        results.append(net.gradients())
    assert relative_error(results[0], results[1]) < 1e-10
    assert backwards == 2 + 2
    net = ToyDenoiser(dropout, torch.float64)
    with preserved_rng():
        path = unroll(guided(net), sampler, start, list(range(START)), [1, 4], record=True, graph_denoiser=guided(net))
        gradients = leaf_gradients(loss_of(path.latents), path)
        replay(guided(net), path, {i: gradients[i] for i in (1, 4)}, counted)
    assert relative_error(net.gradients(), results[1]) < 1e-10
    assert backwards == 4 + 2
