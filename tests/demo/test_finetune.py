"""The training loop: budgets, what it updates, and where the adversarial turn comes in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core.report import TurnReport
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.demo.data import load_splits
from adt_plugin.demo.finetune import Budget, Plan, build_turn, finetune, tunable_copy
from adt_plugin.demo.study import Study
from adt_plugin.demo.variants import SHIPPED
from benchmarks.ablations import FROZEN

SHORT = Plan(adt=replace(SHIPPED, warmup=2, every=1))


def counted(turn: AdversarialTurn) -> list[TurnReport]:
    """The reports of all turns that this object will make."""
    reports = []

    class Counted(type(turn)):
        def __call__(self, *args: object, **kwargs: object) -> TurnReport:
            reports.append(super().__call__(*args, **kwargs))
            return reports[-1]

    turn.__class__ = Counted
    return reports


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def tuned(study: Study, plan: Plan, steps: int = 2, seed: int = 0) -> Tensor:
    """The weights after a fine-tune."""
    unet = tunable_copy(study.base.unet)
    finetune(unet, study.train, plan, Budget(steps=steps), build_turn(study.base, plan, seed), seed)
    return weights(unet)


def test_a_budget_of_steps_ends_after_them(tiny_study: Study):
    budget, seen = Budget(steps=3), []
    finetune(tunable_copy(tiny_study.base.unet), tiny_study.train, Plan(), budget, None, 0, lambda b: seen.append(b.taken))
    assert seen == [1, 2, 3]


def test_a_budget_of_seconds_ends_after_them(tiny_study: Study, monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    budget = Budget(seconds=20)
    finetune(tunable_copy(tiny_study.base.unet), tiny_study.train, Plan(), budget, None, 0)
    assert 1 <= budget.taken < 20
    assert budget.progress >= 1


def test_the_clock_starts_when_it_is_first_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.perf_counter", iter([100.0, 103.0]).__next__)
    budget = Budget(seconds=6)
    assert (budget.elapsed, budget.progress) == (0.0, 0.5)


@pytest.mark.parametrize("arguments", [{}, {"steps": 3, "seconds": 3.0}])
def test_a_budget_is_either_steps_or_seconds(arguments: dict[str, float]):
    with pytest.raises(ValueError, match="one of the two"):
        Budget(**arguments)


def test_fine_tuning_is_reproducible_and_leaves_base_and_global_generator_alone(tiny_study: Study):
    before, state = weights(tiny_study.base.unet), torch.get_rng_state()
    assert torch.equal(tuned(tiny_study, SHORT), tuned(tiny_study, SHORT))
    assert not torch.equal(tuned(tiny_study, SHORT), tuned(tiny_study, SHORT, seed=1))
    assert torch.equal(weights(tiny_study.base.unet), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_adversarial_turn_changes_the_outcome(tiny_study: Study):
    assert not torch.equal(tuned(tiny_study, SHORT), tuned(tiny_study, Plan(lr=SHORT.lr)))


def test_the_warm_up_comes_before_the_first_optimizer_step(tiny_study: Study):
    plan = SHORT
    turn = build_turn(tiny_study.base, plan, seed=0)
    reports = counted(turn)
    finetune(tunable_copy(tiny_study.base.unet), tiny_study.train, plan, Budget(steps=3), turn, 0)
    assert [report.warmup for report in reports] == [True, True, False, False, False]


def test_an_average_of_the_weights_lies_between_start_and_end(tiny_study: Study):
    start, end = weights(tiny_study.base.unet), tuned(tiny_study, Plan(lr=1e-3), steps=4)
    averaged = tuned(tiny_study, Plan(lr=1e-3, ema=0.9), steps=4)
    assert 0 < (averaged - start).norm() < (end - start).norm()


def test_seconds_can_be_those_of_the_processor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.process_time", iter([100.0, 103.0]).__next__)
    assert (budget := Budget(seconds=6, cpu_time=True)).elapsed == 0.0
    assert budget.progress == 0.5


def test_a_turn_every_second_step(tiny_study: Study):
    plan = replace(SHORT, adt=replace(SHORT.adt, warmup=0, every=2))
    turn = build_turn(tiny_study.base, plan, seed=0)
    reports = counted(turn)
    finetune(tunable_copy(tiny_study.base.unet), tiny_study.train, plan, Budget(steps=5), turn, 0)
    assert len(reports) == 3


def test_without_both_losses_nothing_is_learnt(tiny_study: Study):
    unet = tunable_copy(tiny_study.base.unet)
    finetune(unet, tiny_study.train, Plan(diffusion=False), Budget(steps=2), None, 0)
    assert torch.equal(weights(unet), weights(tiny_study.base.unet))


def test_without_its_loss_the_diffusion_gradient_is_still_the_measure(tiny_study: Study):
    last = []
    for diffusion in (True, False):
        plan = replace(SHORT, diffusion=diffusion)
        turn = build_turn(tiny_study.base, plan, seed=0)
        reports = counted(turn)
        finetune(tunable_copy(tiny_study.base.unet), tiny_study.train, plan, Budget(steps=1), turn, 0)
        last.append(reports[-1])
    assert last[0].grad_norm == last[1].grad_norm > 0


def test_frozen_heads_stay_as_they_were_drawn(tiny_study: Study):
    plan = replace(SHORT, adt=replace(SHORT.adt, **FROZEN))
    turn = build_turn(tiny_study.base, plan, seed=0)
    heads = {name: p.clone() for name, p in turn.discriminator.score.named_parameters() if not name.endswith("bias")}
    finetune(tunable_copy(tiny_study.base.unet), tiny_study.train, plan, Budget(steps=2), turn, 0)
    assert all(torch.equal(dict(turn.discriminator.score.named_parameters())[name], p) for name, p in heads.items())


def test_the_backbone_is_not_trained(tiny_study: Study):
    before = weights(tiny_study.base.backbone)
    tuned(tiny_study, SHORT)
    assert torch.equal(weights(tiny_study.base.backbone), before)


def test_the_fine_tunes_never_see_other_splits(tiny_study: Study):
    assert torch.equal(tiny_study.train.images, load_splits().train.images)
