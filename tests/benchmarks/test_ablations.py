"""What is compared, and how the ablations' turns walk."""

from __future__ import annotations

from functools import partial
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core.diffusion import gradient_path
from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.diffusion.samplers import build_sampler
from adt_plugin.core.diffusion.unroll import NoisedStart, Unroll, noised_start, unroll
from adt_plugin.core.discriminator import Discriminator
from adt_plugin.core.discriminator.discriminator import PairFeatures
from adt_plugin.core.report import TurnReport
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.demo.data import decode, encode, load_splits
from adt_plugin.demo.diffusion import alphas_cumprod
from adt_plugin.demo.finetune import STRATEGIES, build_turn, tunable_copy
from adt_plugin.demo.models import UNet
from adt_plugin.demo.study import Study
from adt_plugin.demo.variants import ADT, BASE, PLAIN, changed, hurried
from benchmarks import judges, strategies, turns
from benchmarks.ablations import ABLATIONS, FROZEN_TRIALS, PAPER, PLAIN_TRIALS, without_average

TRIALS = (*PLAIN_TRIALS, *FROZEN_TRIALS)
ABLATED = tuple(chain.from_iterable(ABLATIONS.values()))
EVERYTHING = (BASE, ADT, *TRIALS, *map(without_average, TRIALS), *ABLATED)


def batch() -> tuple[Tensor, Tensor]:
    """Latents and labels of four digits."""
    train = load_splits().train
    return encode(train.images[:4]), train.labels[:4]


def gradients(unet: UNet) -> Tensor:
    return torch.cat([p.grad.flatten() for p in unet.parameters()])


def test_names_are_unique():
    assert len({variant.name for variant in EVERYTHING}) == len(EVERYTHING)


@pytest.mark.parametrize("variant", [*ABLATED, *FROZEN_TRIALS], ids=lambda variant: variant.name)
def test_every_ablation_changes_something(variant):
    assert variant.plan != ADT.plan


def test_frozen_heads_are_tried_with_every_dial_that_they_have():
    frozen = ABLATIONS["frozen"]
    assert len({variant.plan for variant in frozen}) == len(frozen)
    assert all(variant.plan.adt.disc_lr == 0 and variant.plan.adt.warmup == 8 for variant in frozen)
    names = {variant.name.removeprefix("frozen heads, ") for variant in frozen}
    assert len(names) == 20 and {"weight 10", "K = 1", "always the whole path", "no augmentation"} <= names
    assert (
        not {"hinge loss", "one head step a turn", "warm-up of 80 turns", "starts by what is told apart"} & names
    )  # about learning


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


def turn_of(study: Study, strategy: str, **adt: object) -> AdversarialTurn:
    turn = build_turn(study.base, changed({"warmup": 0} | adt, strategy=strategy), seed=0)
    turn.balance.diffusion.update(torch.ones(()))
    return turn


def take(turn: AdversarialTurn, study: Study) -> TurnReport:
    latents, labels = batch()
    return turn(partial(tunable_copy(study.base.unet), labels=labels), latents)


def test_an_untrained_backbone_is_always_the_same_and_frozen(tiny_study: Study):
    first, second = (turn_of(tiny_study, "untrained backbone").discriminator.backbone for _ in range(2))
    shipped, image = turn_of(tiny_study, "paper").discriminator.backbone, torch.zeros(1, 1, 28, 28)
    assert torch.equal(first(image)[0], second(image)[0]) and not torch.equal(first(image)[0], shipped(image)[0])
    assert not any(parameter.requires_grad for parameter in first._network.parameters())


def test_a_trained_backbone_begins_as_the_shipped_one_which_stays_as_it_is(tiny_study: Study):
    turn = turn_of(tiny_study, "trained backbone")
    shipped, image = tiny_study.base.backbone, batch()[0].new_ones(2, 1, 28, 28)
    deepest = turn.discriminator.score.heads[-1]
    before = [parameter.clone() for parameter in shipped.parameters()]
    features = image
    for stage in deepest.stages:
        features = stage(features)
    assert torch.equal(features, shipped(image)[-1])
    report = take(turn, tiny_study)
    assert not report.skipped and all(map(torch.equal, before, shipped.parameters()))
    assert not torch.equal(deepest.stages[0].conv.weight, shipped.stages[0].conv.weight)


def test_the_denoiser_as_backbone_is_told_the_noise_and_stays_as_it_is(tiny_study: Study):
    turn = turn_of(tiny_study, "denoiser features", noise=0.3)
    network, alphas = turn.discriminator.backbone._network, alphas_cumprod()
    assert ((1 - alphas) / alphas).sqrt()[network.timestep] == pytest.approx(0.3, abs=0.01)
    image = torch.zeros(2, 1, 28, 28, requires_grad=True)
    maps = turn.discriminator.backbone(image)
    assert [feature.shape[1:] for feature in maps] == [(32, 14, 14), (64, 7, 7), (64, 7, 7)]
    maps[-1].sum().backward()
    assert image.grad.abs().sum() > 0
    before = [parameter.clone() for parameter in tiny_study.base.unet.parameters()]
    assert take(turn, tiny_study).grad_norm > 0
    assert all(map(torch.equal, before, tiny_study.base.unet.parameters()))


@pytest.mark.parametrize("judge", [*judges.JUDGES, "cached features", "by length"])
def test_every_judge_teaches_the_denoiser_and_learns(judge: str, tiny_study: Study):
    turn = turn_of(tiny_study, judge)
    before = [parameter.clone() for parameter in turn.discriminator.parameters()]
    report = take(turn, tiny_study)
    assert report.grad_norm > 0 and not report.skipped
    assert not all(map(torch.equal, before, turn.discriminator.parameters()))


def pairs_of(study: Study, judge: str) -> tuple[Discriminator, PairFeatures]:
    """A discriminator, and its features of pairs that are noise and digits."""
    discriminator, real = turn_of(study, judge).discriminator, load_splits().train.images[:4]
    gen = torch.randn(real.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    return discriminator, discriminator.pair_features(gen, real)


def test_the_average_of_the_heads_lags_behind_them_and_is_what_is_followed(tiny_study: Study):
    discriminator, features = pairs_of(tiny_study, "averaged heads")
    first, bias = discriminator.score_gen(features), discriminator.score.bias
    assert torch.equal(first, Discriminator.score_gen(discriminator, features))  # begins as the heads
    with torch.no_grad():
        bias += 1
    moved = first - discriminator.score_gen(features)
    assert torch.allclose(moved, torch.full_like(moved, 10 * (1 - judges.HEADS_DECAY)), rtol=1e-4)  # scores are ten cosines
    assert len(list(discriminator.parameters())) == len(list(pairs_of(tiny_study, "paper")[0].parameters()))


def test_other_partners_are_the_neighbours_in_the_batch(tiny_study: Study):
    discriminator, features = pairs_of(tiny_study, "other partners")

    def scores() -> Tensor:
        return torch.stack([*discriminator.scores(features), discriminator.score_gen(features)])

    before = scores()
    for block in features.real_again:
        block[2] += 1
    assert (scores() != before).any(0).tolist() == [False, False, False, True]
    before = discriminator.score_gen(features)
    for block in features.real:
        block += 1
    assert torch.equal(discriminator.score_gen(features), before)  # its own source is not looked at


def test_two_scales_are_the_same_network_at_twice_the_size(tiny_study: Study):
    sizes = [feature.shape[-1] for feature in pairs_of(tiny_study, "two scales")[1].gen]
    assert sizes == [14, 7, 4, 28, 14, 7]


def test_spectral_norms_are_one(tiny_study: Study):
    discriminator, _ = pairs_of(tiny_study, "spectral norms")
    kernels = [module.weight.detach() for module in discriminator.score.heads.modules() if isinstance(module, nn.Conv2d)]
    assert len(kernels) == 6
    assert all(torch.linalg.matrix_norm(kernel.flatten(1), ord=2) == pytest.approx(1, abs=0.15) for kernel in kernels)


@pytest.mark.parametrize(("start", "needs_the_source"), [(2, True), (3, True), (4, False), (5, False)])
def test_high_starts_are_judged_without_their_source(start: int, needs_the_source: bool, tiny_study: Study):
    discriminator, features = pairs_of(tiny_study, "by start")
    turn = turn_of(tiny_study, "by start", start_min=start / 5, start_max=start / 5)
    take(turn, tiny_study)  # notes its start
    before = discriminator.score_gen(features)
    for block in features.real:
        block += torch.randn(block.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(discriminator.score_gen(features), before) != needs_the_source


def test_cached_features_are_borrowed_in_every_second_step_that_is_not_trained(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
):
    computed: list[int] = []
    deep = UNet.deep
    cache = strategies.DeepCache(partial(tiny_study.base.unet, labels=torch.zeros(2, dtype=torch.long)), whole=[3])
    monkeypatch.setattr(UNet, "deep", lambda self, *features: computed.append(cache.position) or deep(self, *features))
    latents = torch.randn(2, 4, 14, 14, generator=torch.Generator().manual_seed(0))
    found = [cache(latents, torch.full((2,), 900 - 100 * step)) for step in range(6)]
    assert computed == [0, 2, 3, 5]  # 1 and 4 borrow; 3 is trained
    own = [tiny_study.base.unet(latents, torch.full((2,), 900 - 100 * step), cache.labels) for step in range(6)]
    assert [torch.equal(*pair) for pair in zip(found, own, strict=True)] == [step in (0, 2, 3, 5) for step in range(6)]


def test_the_gradient_of_a_path_grows_with_its_length_and_short_ones_pull_less(tiny_study: Study):
    for start in (2, 5):
        only = {"start_min": start / 5, "start_max": start / 5}
        usual, pulling = (take(turn_of(tiny_study, name, **only), tiny_study).grad_norm_raw for name in ("paper", "by length"))
        assert pulling == pytest.approx(usual * start / strategies.MEAN_START, rel=1e-4)


def grids(start_function: NoisedStart, start: int) -> list[list[int]]:
    """The grids, of a nominal five points, that sixty draws of the noise give."""
    sampler, found = build_sampler("ddim", alphas_cumprod(), "epsilon", "leading"), []
    for seed in range(60):
        noise = torch.randn(1, 4, 14, 14, generator=torch.Generator().manual_seed(seed))
        start_function(sampler, torch.zeros_like(noise), noise, 5, start)
        found.append(sampler.timesteps.tolist())
    return found


def test_shifted_grids_lie_between_the_leading_and_the_trailing_one():
    found = grids(strategies.shifted_start, 5)
    assert all(grid == list(range(grid[0], 0, -200)) and 801 <= grid[0] <= 999 for grid in found)
    assert len({grid[0] for grid in found}) > 40 and grids(strategies.shifted_start, 5) == found


def test_any_grid_has_as_many_points_as_are_walked_or_more():
    assert {len(grid) for grid in grids(strategies.any_grid_start, 3)} == set(range(3, 11))


def test_a_path_that_stops_begins_no_lower_and_has_as_many_steps():
    found = {tuple(grid) for grid in grids(strategies.higher_start, 3)}
    assert found == {(801, 601, 401), (601, 401, 201), (401, 201, 1)}


def test_a_stopped_path_ends_in_the_image_that_its_last_step_predicts():
    """A denoiser that knows the noise predicts the image itself, wherever the path stops."""
    clean = batch()[0]
    noise, sampler = torch.randn_like(clean), build_sampler("ddim", alphas_cumprod(), "epsilon", "leading")
    noised = strategies.higher_start(sampler, clean, noise, 5, 2)
    path = strategies.stopped_unroll(lambda latents, timestep: noise, sampler, noised, [0, 0], [0, 1], True)
    assert len(path.steps) == 2 and torch.allclose(path.latents, clean, atol=1e-4)
    assert path.latents.requires_grad


def test_starts_are_drawn_the_more_often_the_better_their_pairs_are_told_apart(tiny_study: Study):
    turn = turn_of(tiny_study, "telling starts")
    assert isinstance(turn, turns.TellingStarts) and list(turn.told_apart) == [2, 3, 4, 5]
    start = take(turn, tiny_study).start
    assert turn.told_apart[start] < 1.0 and list(turn.told_apart.values()).count(1.0) == 3
    turn.told_apart = {2: 0.4, 3: 0.5, 4: 0.7, 5: 0.9}
    drawn = [turn._draw_start() for _ in range(2000)]
    assert [drawn.count(s) / 2000 for s in turn.told_apart] == pytest.approx(
        [0.05 / 0.7, 0.05 / 0.7, 0.2 / 0.7, 0.4 / 0.7], abs=0.03
    )


def test_a_path_is_walked_on_over_turns_as_it_would_have_been_at_once(tiny_study: Study, monkeypatch: pytest.MonkeyPatch):
    """With a denoiser that does not learn meanwhile the pieces are the whole, and the last piece ends in its image."""
    monkeypatch.setattr(turns, "KEPT", 1)
    turn = turn_of(tiny_study, "continued paths", start_min=1, weight=0.0)
    denoiser, (latents, labels) = tiny_study.base.unet, batch()
    calls: list[list[int]] = []
    monkeypatch.setattr(turns, "unroll", lambda *args: calls.append(args[1].timesteps.tolist()) or unroll(*args))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(turn.config.seed + 1_000_003))
    reports = [turn(partial(denoiser, labels=labels if k == 0 else 9 - labels), latents * (k == 0)) for k in range(3)]
    assert calls == [[801, 601], [401, 201], [1]] and [report.start for report in reports] == [2, 2, 1]
    assert torch.equal(reports[0].real, reports[2].real) and not turn.under_way
    whole = build_sampler("ddim", alphas_cumprod(), "epsilon", "leading")
    path = unroll(partial(denoiser, labels=labels), whole, noised_start(whole, latents, noise, 5, 5), [0] * 5, [], False)
    assert torch.allclose(reports[2].gen, decode(path.latents), atol=1e-5)
    assert not torch.allclose(reports[1].gen, reports[2].gen, atol=1e-2)


def test_so_many_paths_are_under_way_and_every_turn_trains_all_that_it_walks(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(turns, "KEPT", 3)
    turn = turn_of(tiny_study, "continued paths", start_min=1)
    reports = [take(turn, tiny_study) for _ in range(10)]
    assert all(report.grad_norm > 0 and len(report.grad_positions) == report.start for report in reports)
    assert [report.start for report in reports] == [2, 2, 2, 2, 2, 2, 1, 2, 1, 2]


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
