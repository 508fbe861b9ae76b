"""What a run says of itself."""

from __future__ import annotations

import dataclasses

import pytest
from test_monitor import reports

from adt_plugin.core.report import TurnReport
from adt_plugin.core.run.story import ENDS, DistanceTrend, Story, duration
from adt_plugin.core.schedule import TurnCount


class Clock:
    """Shows what it was set to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def report() -> TurnReport:
    return reports(1)[0]


def told(story: Story, report: TurnReport, seconds: float = 2.0, **values: object) -> str | None:
    return story.tell(dataclasses.replace(report, **values), seconds)


def test_the_first_sentence_counts_the_turns_and_says_where_to_look() -> None:
    sentence = Story("dinov2-base", "Rows: x.jsonl.").beginning(TurnCount(40, 980), "It takes 2.6 times as long.")
    assert sentence == (
        "ADT begins: 1020 turns to come, of which the first 40 train the discriminator alone; backbone dinov2-base. "
        "It takes 2.6 times as long. Rows: x.jsonl."
    )
    assert Story("b", "Rows.").beginning(TurnCount(0, 5)) == "ADT begins: 5 turns to come; backbone b. Rows."


def test_the_end_of_the_warm_up_is_said_once(report: TurnReport) -> None:
    story = Story("b", "Rows.")
    said = [told(story, report, turn=n, warmup=n < 3) for n in range(1, 6)]
    assert [bool(sentence) for sentence in said] == [False, False, True, False, False]
    assert said[2].startswith("ADT: the warm-up is over; from turn 3 on")
    assert not any(told(Story("b", "Rows."), report, turn=n, warmup=False) for n in (1, 2))


def test_the_last_sentence_has_turns_time_and_distance(report: TurnReport) -> None:
    clock = Clock()
    story = Story("b", "Rows: x.jsonl.", clock)
    for distance in (1.0, 1.0, 0.5, 0.5):
        told(story, report, start=3, distance=distance)
    told(story, report, start=3, distance=float("nan"), skipped=True)
    clock.now = 40.0
    assert story.ending() == (
        "ADT ends: 5 turns (1 skipped, not being finite) took 10 s, which made the run 1.33 times as long; distance of "
        "generated from real windows 1.000 at first, 0.500 at the end (-50%). Rows: x.jsonl."
    )
    assert Story("b", "Rows.").ending() == "ADT ends: no turn was made."


def test_the_distance_is_compared_start_by_start() -> None:
    """More turns from far away at the end alone would look like a rise."""
    trend = DistanceTrend()
    for start, distance in [(2, 1.0), (2, 1.0), (5, 9.0), (5, 9.0), (5, 9.0), (5, 9.0)]:
        trend.add(start, distance)
    assert trend.ends == (5.0, 5.0)


def test_both_ends_are_a_few_turns_of_a_long_run() -> None:
    trend = DistanceTrend()
    for turn in range(1000):
        trend.add(4, 2.0 if turn < ENDS else 3.0 if turn < 1000 - ENDS else 1.0)
    assert trend.ends == (2.0, 1.0)
    assert DistanceTrend().ends is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4231, "0.42 s"), (9.96, "10 s"), (42.4, "42 s"), (200, "3 min 20 s"), (3600 + 299.7, "1 h 5 min")],
)
def test_time_is_said_as_a_person_says_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words
