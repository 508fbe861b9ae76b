"""When a run has turns: phases, due steps, counts, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from itertools import product

import pytest

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.schedule import AdversarialRate, Phase, TurnCount, TurnSchedule, count_grad_steps, start_range

SCHEDULES = [TurnSchedule(*values) for values in product((0, 1, 3, 8), (1, 2, 5), (0, 4, 30), (0, 7, 33))]


def walked(schedule: TurnSchedule, steps: int, batches: int, step: int, turns: int) -> TurnCount:
    """What a training loop does, batch by batch."""
    made = {phase: 0 for phase in Phase}
    for now in range(step, step + steps):
        for _ in range(batches):
            phase = schedule.phase(now, turns)
            if schedule.due(now, turns):
                made[phase] += 1
                turns += 1
    assert made[Phase.OFF] == 0
    return TurnCount(made[Phase.WARMUP], made[Phase.ADVERSARIAL])


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize(("step", "turns"), [(0, 0), (7, 2), (6, 8), (31, 40)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_count_is_what_a_loop_makes(schedule: TurnSchedule, step: int, turns: int, batches: int) -> None:
    for steps in (0, 1, 2, 5, 11, 24):
        counted = schedule.count(steps, batches, step, turns)
        assert counted == walked(schedule, steps, batches, step, turns)
        assert counted.total == counted.warmup + counted.adversarial


def test_every_batch_of_the_warmup_is_due_and_then_one_step_in_n() -> None:
    schedule = TurnSchedule(warmup=2, every=3)
    assert [schedule.phase(5, turns) for turns in (0, 1, 2)] == [Phase.WARMUP, Phase.WARMUP, Phase.ADVERSARIAL]
    assert all(schedule.due(step, turns=1) for step in range(7))
    assert [step for step in range(7) if schedule.due(step, turns=2)] == [0, 3, 6]


def test_before_it_begins_a_schedule_is_off_and_its_warmup_comes_after() -> None:
    schedule = TurnSchedule(warmup=2, every=1, begin=10)
    assert schedule.phase(9, 0) is Phase.OFF and not schedule.due(9, 0)
    assert schedule.phase(10, 0) is Phase.WARMUP and schedule.due(10, 0)
    assert schedule.phase(10, 2) is Phase.ADVERSARIAL
    assert schedule.count(10) == TurnCount(0, 0)
    assert schedule.count(15) == TurnCount(2, 3)


def test_a_run_whose_warm_up_is_behind_it_has_no_turn_before_the_adversarial_part() -> None:
    """As one that resumes a state of the last mile with more steps to come: until then its own rate holds."""
    schedule = TurnSchedule.from_config(ADTConfig(warmup=40), 4000)
    assert schedule.phase(3640, turns=0) is Phase.WARMUP
    assert schedule.phase(3640, turns=200) is Phase.OFF and not schedule.due(3679, turns=200)
    assert schedule.phase(3680, turns=200) is Phase.ADVERSARIAL
    assert schedule.count(1000, step=3000, turns=200) == TurnCount(0, 320)


def test_the_options_make_the_schedule() -> None:
    assert TurnSchedule.from_config(ADTConfig(begin=0, warmup=7, every=3), 100) == TurnSchedule(7, 3)
    late = TurnSchedule.from_config(ADTConfig(begin=0.5, warmup=7, every=3), 100)
    assert late == TurnSchedule(warmup=7, every=3, begin=43, adversarial=50)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TurnSchedule(1, 1).every = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("begin", "batches", "first"),
    [
        (0.9, 1, 860),  # the warm-up of 40 turns ends where the last tenth begins
        (0.9, 4, 890),  # four batches a step: 40 turns in ten steps
        (0.9, 3, 886),  # 40 turns are 13 steps and a third: the warm-up ends a little early
        (700.0, 1, 660),
        (0.02, 1, 0),  # no room before it: the warm-up comes first, and what follows begins later
        (0.0, 1, 0),
    ],
)
def test_the_warmup_ends_where_the_adversarial_part_begins(begin: float, batches: int, first: int) -> None:
    schedule = TurnSchedule.from_config(ADTConfig(begin=begin, warmup=40, every=1), 1000, batches)
    assert schedule.begin == first


def test_a_begin_that_is_no_whole_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="--adt_begin must be a share of the run below 1, such as 0.9, or a whole step"):
        ADTConfig(begin=90.5)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (TurnSchedule(0, 1, begin=50), "lower --adt_begin to step 18, or train longer [(]the run ends at step 20[)]"),
        (TurnSchedule(40, 1), "lower --adt_warmup to 2, or train longer"),
        (TurnSchedule(0, 50, begin=10), "lower --adt_every to 10, or train longer"),
        (TurnSchedule(40, 50), "lower --adt_warmup to 2 and --adt_every to 18, or train longer"),
    ],
)
def test_the_refusal_names_what_is_too_much(schedule: TurnSchedule, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        schedule.check(20)


def followed(message: str) -> dict[str, float]:
    """The options of a refusal's advice, and their values."""
    told = re.findall(r"--adt_(\w+) to (?:step )?(\d+)", message)
    return {name: float(value) if name == "begin" else int(value) for name, value in told}


def test_every_50_in_20_steps_is_told_at_once_what_to_change() -> None:
    config = ADTConfig(every=50)
    with pytest.raises(ConfigError, match="lower --adt_warmup to 2 and --adt_every to 2, or train longer") as refused:
        TurnSchedule.from_config(config, 20).check(20)
    TurnSchedule.from_config(dataclasses.replace(config, **followed(str(refused.value))), 20).check(20)


@pytest.mark.parametrize(("step", "turns"), [(0, 0), (7, 2), (31, 45)])
@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize("begin", [0.0, 0.5, 0.92, 0.99, 60.0])
def test_following_the_advice_once_is_enough(begin: float, batches: int, step: int, turns: int) -> None:
    for steps, warmup, every in product((1, 2, 6, 20, 55), (0, 3, 40, 400), (1, 7, 50)):
        config = ADTConfig(begin=begin, warmup=warmup, every=every)
        try:
            TurnSchedule.from_config(config, step + steps, batches).check(steps, batches, step, turns)
        except ConfigError as error:
            changed = dataclasses.replace(config, **followed(str(error)))
            TurnSchedule.from_config(changed, step + steps, batches).check(steps, batches, step, turns)


def test_without_a_step_to_come_only_a_longer_run_helps() -> None:
    with pytest.raises(ConfigError, match="adversarial gradient: train longer [(]the run ends at step 20[)]"):
        TurnSchedule(0, 1).check(0, step=20)


def test_the_adversarial_part_has_a_rate_of_its_own_that_falls_to_zero() -> None:
    rate = AdversarialRate.from_config(ADTConfig(begin=0.5, lr=0.4), 100)
    assert rate.at(49) is None
    assert [rate.at(step) for step in (50, 75, 100)] == [0.4, 0.4, 0.0]
    assert rate.at(90) == pytest.approx(0.4 * 2 * 10 / 50)
    assert rate.at(120) == 0.0
    assert AdversarialRate.from_config(ADTConfig(begin=0.5, lr=0.0), 100).at(80) is None
    assert AdversarialRate.from_config(ADTConfig(begin=0.5, lr=0.4, weight=0), 100).at(80) is None  # the model is left alone


@pytest.mark.parametrize(
    ("schedule", "steps", "turns", "step", "refused"),
    [
        (TurnSchedule(100, 1), 80, 100, 100, False),  # the warm-up is behind it
        (TurnSchedule(100, 1), 80, 10, 10, True),
        (TurnSchedule(0, 1000), 500, 3, 3, True),  # the next turn would be at step 1000
        (TurnSchedule(0, 1000), 500, 3, 600, False),
        (TurnSchedule(5, 2), 2, 0, 0, True),  # two batches each: steps 0, 1 and half of 2 are warm-up
        (TurnSchedule(5, 2), 3, 0, 0, False),
    ],
)
def test_a_run_without_an_adversarial_turn_is_refused(
    schedule: TurnSchedule, steps: int, turns: int, step: int, refused: bool
) -> None:
    batches = 2 if schedule.warmup == 5 else 1
    said = f"--adt_warmup {schedule.warmup} and --adt_every {schedule.every} leave no turn of this run"
    with pytest.raises(ConfigError, match=said) if refused else contextlib.nullcontext():
        schedule.check(steps, batches, step, turns)


@pytest.mark.parametrize(("mask", "start", "expected"), [("random", 1, 1), ("random", 5, 2), ("all", 5, 5), ("last", 2, 2)])
def test_the_steps_that_carry_gradient_are_counted(mask: str, start: int, expected: int) -> None:
    assert count_grad_steps(ADTConfig(grad_mask=mask, grad_steps=2), start) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.0, 1.0, (1, 10)), (0.0, 0.7, (1, 7)), (0.3, 0.3, (3, 3)), (1.0, 1.0, (10, 10))]
)
def test_the_range_of_starts_follows_from_the_fractions(low: float, high: float, expected: tuple[int, int]) -> None:
    assert start_range(ADTConfig(steps=10, start_min=low, start_max=high)) == expected


def test_a_range_without_a_start_names_the_flags() -> None:
    with pytest.raises(ConfigError, match="--adt_start_min 0.12 and --adt_start_max 0.18"):
        start_range(ADTConfig(steps=10, start_min=0.12, start_max=0.18))
