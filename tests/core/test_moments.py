"""What optimizers remember of plain steps fits the gradients that come with turns."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.moments import Growth, age, expect_growth, growth, plain_norm

LR = 1e-3


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, sizes: list[float]) -> float:
    """Make a step with a random gradient of each of these sizes; return how far a value has moved on average."""
    before, generator = parameter.detach().clone(), torch.Generator().manual_seed(len(sizes))
    for size in sizes:
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return float((parameter.detach() - before).abs().mean())


def adamw(parameter: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.AdamW([parameter], lr=LR, weight_decay=0.0)


def adafactor(parameter: nn.Parameter) -> torch.optim.Optimizer:
    return Adafactor([parameter], lr=LR, relative_step=False, scale_parameter=False, clip_threshold=1e9)


def eight_bits(parameter: nn.Parameter) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit([parameter], lr=LR, weight_decay=0.0, min_8bit_size=16)


def paged(parameter: nn.Parameter) -> torch.optim.Optimizer:
    """In full precision, under names of its own."""
    import bitsandbytes

    return bitsandbytes.optim.AdamW([parameter], lr=LR, weight_decay=0.0)


needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
OPTIMIZERS = [
    adamw,
    adafactor,
    pytest.param(eight_bits, marks=needs_bitsandbytes),
    pytest.param(paged, marks=needs_bitsandbytes),
]


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_a_step_is_as_long_as_its_rate_says_when_gradients_have_grown(build: Callable[[nn.Parameter], Any]) -> None:
    """Five times the gradient makes steps several times too long until the average has caught up; forewarned, it does not."""
    moved = {}
    for factor in (1.0, 26.0):
        parameter = nn.Parameter(torch.zeros(64, 64))
        optimizer = build(parameter)
        plain = stepped(optimizer, parameter, [1.0] * 300)
        expect_growth([optimizer], factor)
        moved[factor] = stepped(optimizer, parameter, [26**0.5] * 10) / (plain * (10 / 300) ** 0.5)  # a random walk
    assert moved[1.0] > 1.6 * moved[26.0]
    assert 0.4 < moved[26.0] < 1.3


def test_an_optimizer_without_such_an_average_stays_as_it_is() -> None:
    parameter = nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([parameter], lr=LR, momentum=0.9)
    stepped(optimizer, parameter, [1.0] * 3)
    before = optimizer.state[parameter]["momentum_buffer"].clone()
    expect_growth([optimizer, torch.optim.AdamW([nn.Parameter(torch.zeros(1))])], 26.0)
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], before)


def test_how_much_gradients_grow() -> None:
    assert growth(ADTConfig()) == 26
    assert growth(ADTConfig(every=5)) == 6
    assert growth(ADTConfig(weight=0)) == 1
    assert growth(ADTConfig(weight=20, max_grad_ratio=2.0)) == 5
    assert growth(ADTConfig(balance="none")) == 1


def test_parameters_that_turns_do_not_reach_keep_their_average() -> None:
    reached, other = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.AdamW([reached, other], lr=LR)
    for parameter in (reached, other):
        parameter.grad = torch.ones(8)
    optimizer.step()
    expect_growth([optimizer], 26.0, [other])
    ratio = optimizer.state[reached]["exp_avg_sq"] / optimizer.state[other]["exp_avg_sq"]
    assert torch.allclose(ratio, torch.full((8,), 26.0))


def aged(steps: int) -> torch.optim.AdamW:
    """An optimizer after so many steps with gradients of one."""
    parameter = nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.AdamW([parameter], lr=LR)
    stepped(optimizer, parameter, [1.0] * steps)
    return optimizer


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_an_optimizer_knows_how_old_it_is(build: Callable[[nn.Parameter], Any]) -> None:
    parameter = nn.Parameter(torch.zeros(64, 64))
    optimizer = build(parameter)
    assert age([optimizer]) == 0
    stepped(optimizer, parameter, [1.0] * 7)
    assert age([optimizer]) == 7
    assert age([optimizer, torch.optim.SGD([parameter], lr=LR)]) == 7


def test_an_optimizer_without_a_state_of_its_own_counts_by_its_groups() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    parameter = nn.Parameter(torch.zeros(8))
    optimizer = schedulefree.AdamWScheduleFree([parameter], lr=LR)
    optimizer.train()
    stepped(optimizer, parameter, [1.0] * 3)
    assert age([optimizer]) == 3


def average(optimizer: torch.optim.Optimizer) -> float:
    ((state,),) = (optimizer.state.values(),)
    return float(state["exp_avg_sq"].mean())


@pytest.mark.parametrize(
    ("steps", "every", "patience", "grows"),
    [
        (100, 1, 80, True),
        (80, 1, 80, False),  # an average so young follows by itself
        (0, 1, 0, False),  # the run begins with its turns
        (100, 200, 80, False),  # no more steps than lie between two turns
    ],
)
def test_turns_after_plain_steps_are_told_once(steps: int, every: int, patience: int, grows: bool) -> None:
    optimizer, config = aged(steps), ADTConfig(every=every)
    before = average(optimizer) if steps else 0.0
    told = Growth(config, [optimizer], patience)
    assert told.before(steps) is grows
    told.after(steps)
    assert not told.before(steps + every)
    if steps:
        assert average(optimizer) == pytest.approx(before * (growth(config) if grows else 1))


def test_what_was_told_of_a_turn_that_was_not_made_is_taken_back() -> None:
    optimizer = aged(100)
    before, told = average(optimizer), Growth(ADTConfig(), [optimizer], 80)
    assert told.before(100)
    told.undo()
    assert average(optimizer) == pytest.approx(before) and told.before(100)


def test_a_run_that_resumes_within_its_adversarial_part_is_told_nothing_and_one_that_trains_plainly_first_is() -> None:
    for first, factor in ((100, 1.0), (180, 1.0), (1100, 26 / (1 + 25 * 0.999**1000)), (100_000, 26.0)):
        optimizer = aged(100)
        before, told = average(optimizer), Growth(ADTConfig(), [optimizer], 80)
        told.follow(100)
        assert told.before(first) is (factor > 1)
        assert average(optimizer) == pytest.approx(before * factor)  # what earlier turns left in it counts


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_the_norm_of_plain_gradients_is_read_from_the_average(build: Callable[[nn.Parameter], Any]) -> None:
    parameter = nn.Parameter(torch.zeros(60, 61))  # no whole number of blocks
    optimizer = build(parameter)
    assert plain_norm([optimizer]) is None
    stepped(optimizer, parameter, [0.01] * 50)
    found = plain_norm([optimizer])
    assert found is None if build is adafactor else found == pytest.approx(0.01 * (60 * 61) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("clip", "told"), [(0.0, 26.0), (100.0, 26.0), (2 * 8**0.5, 4.0), (8**0.5, 1.0), (1.0, 1.0)])
def test_gradients_grow_no_further_than_the_loop_clips_them(clip: float, told: float) -> None:
    parameter = nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.AdamW([parameter], lr=LR)
    for _ in range(100):
        parameter.grad = torch.ones(8)  # of norm 8 ** 0.5
        optimizer.step()
    before, growing = average(optimizer), Growth(ADTConfig(), [optimizer], 80, clip=clip)
    assert growing.before(100) and average(optimizer) == pytest.approx(before * told, rel=1e-4)
    growing.undo()
    assert average(optimizer) == pytest.approx(before, rel=1e-4)
