"""Sums of parts, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts, mean_turn, run_ratio, total, turn_shares, warmup_turn

PARTS = Parts(forward=1.0, step=3.0, decode_real=0.5, decode_generated=2.0, judge=0.25)
CONFIG = ADTConfig(begin=0, steps=4, grad_steps=2, every=2, warmup=10, start_min=0.0, memory="low")


def test_a_turn_is_its_forwards_its_replays_and_what_happens_once() -> None:
    assert [(share.times, share.total) for share in turn_shares(PARTS, CONFIG, 4)] == [
        (4, 4.0),
        (2, 6.0),
        (1, 2.0),
        (1, 0.5),
        (1, 0.25),
    ]


def test_a_short_path_has_no_more_replays_than_steps() -> None:
    assert total(list(turn_shares(PARTS, CONFIG, 1))) == 1 + 3 + 2.75


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"memory": "fast"}, 4 + 2 * (3 - 1) + 2.75),  # the unroll's own forwards carry the graphs
        ({"grad_mask": "all"}, 4 + 4 * 3 + 2.75),
        ({"cfg_scale": 3.0}, 2 * 4 + 2 * 3 + 2.75),
        ({"cfg_scale": "1:3"}, 2 * 4 + 2 * 3 + 2.75),
        ({"grad_steps": 1}, 4 + 3 + 2.75),
    ],
    ids=["fast", "all", "guidance", "guidance from a range", "K = 1"],
)
def test_what_options_change(options: dict[str, object], expected: float) -> None:
    assert total(list(turn_shares(PARTS, replace(CONFIG, **options), 4))) == expected


def test_the_mean_is_over_all_starts_that_are_allowed() -> None:
    by_hand = [s + 3 * min(2, s) + 2.75 for s in (1, 2, 3, 4)]
    assert total(mean_turn(PARTS, CONFIG)) == pytest.approx(sum(by_hand) / 4)
    late = replace(CONFIG, start_min=0.75)
    assert total(mean_turn(PARTS, late)) == pytest.approx(sum(by_hand[2:]) / 2)


def test_a_run_has_a_turn_in_every_step_of_the_warmup_and_then_every_n_steps() -> None:
    assert warmup_turn(PARTS, CONFIG) == 2.5 + 2 * 0.5 + 0.25
    measured = 8 * 1.5  # of the warm-up, with a gradient to the images
    expected = 1 + (10 * 3.75 + measured + 90 / 2 * total(mean_turn(PARTS, CONFIG))) / (100 * 3)
    assert run_ratio(PARTS, CONFIG, 100) == pytest.approx(expected)


def test_a_run_that_is_all_warmup() -> None:
    assert run_ratio(PARTS, CONFIG, 5) == 1 + (3.75 + 1.5) / 3


def test_a_run_has_its_turns_in_the_last_part() -> None:
    late = replace(CONFIG, begin=0.8)
    assert run_ratio(PARTS, late, 100) == pytest.approx(
        1 + (10 * 3.75 + 8 * 1.5 + 20 / 2 * total(mean_turn(PARTS, late))) / (100 * 3)
    )
