"""What a run says of itself: a sentence when its turns begin, one when the warm-up ends, and one at the end."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from adt_plugin.core.schedule import TurnCount

if TYPE_CHECKING:
    from adt_plugin.core.report import TurnReport

ENDS = 20
"""So many turns from a start, at either end of a run, say where the distance was and is (ours)."""


class DistanceTrend:
    """How the feature distance moves, start by start: paths from different noise are not comparable."""

    def __init__(self) -> None:
        self.first: dict[int, list[float]] = defaultdict(list)
        self.last: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=ENDS))

    def add(self, start: int, distance: float) -> None:
        """Take in a turn from this start."""
        if len(self.first[start]) < ENDS:
            self.first[start].append(distance)
        self.last[start].append(distance)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Mean distance of the first and of the last turns, over the starts that have both; None where none has."""
        starts = [start for start in self.last if len(self.last[start]) > 1]
        if not starts:
            return None
        half = [min(ENDS, len(self.last[start]) // 2) for start in starts]  # in a short run the ends do not overlap
        first = [_mean(self.first[start][:n]) for start, n in zip(starts, half, strict=True)]
        last = [_mean(list(islice(reversed(self.last[start]), n))) for start, n in zip(starts, half, strict=True)]
        return _mean(first), _mean(last)


class Story:
    """Counts a run's turns and their time, and words what there is to say of them.

    Args:
        backbone: as the user knows it.
        places: where rows and pictures are, as a sentence.
        clock: seconds from any zero.

    Attributes:
        ended: the end has been worded.
    """

    def __init__(self, backbone: str, places: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.backbone, self.places, self.clock = backbone, places, clock
        self.began = clock()
        self.turns = self.skipped = 0
        self.seconds = 0.0
        self.trend = DistanceTrend()
        self.warming = self.ended = False

    def beginning(self, count: TurnCount, forecast: str = "") -> str:
        """Return what is said before the first turn.

        Args:
            count: of the turns to come.
            forecast: of what they cost, as a sentence; empty for none.
        """
        warmup = f", of which the first {count.warmup} train the discriminator alone" if count.warmup else ""
        sentences = [f"ADT begins: {count.total} turns to come{warmup}; backbone {self.backbone}.", forecast, self.places]
        return " ".join(sentence for sentence in sentences if sentence)

    def tell(self, report: TurnReport, seconds: float) -> str | None:
        """Take in a turn and return what it gives occasion to say: the first after a warm-up ends that.

        Args:
            seconds: that the turn took.
        """
        ended, self.warming = self.warming and not report.warmup, report.warmup
        self.turns, self.skipped, self.seconds = self.turns + 1, self.skipped + report.skipped, self.seconds + seconds
        if not report.skipped:
            self.trend.add(report.start, report.distance)
        if not ended:
            return None
        return (
            f"ADT: the warm-up is over; from turn {report.turn} on the model learns from the discriminator as well. "
            f"This turn took {duration(seconds)}."
        )

    def ending(self) -> str:
        """Return what is said at the end of the run."""
        self.ended = True
        if not self.turns:
            return "ADT ends: no turn was made."
        skipped = f" ({self.skipped} skipped, not being finite)" if self.skipped else ""
        took = f"{self.turns} turns{skipped} took {duration(self.seconds)}"
        return f"ADT ends: {took}, {self._ratio()}{self._moved()}. {self.places}"

    def _ratio(self) -> str:
        whole = self.clock() - self.began
        return f"which made the run {whole / max(whole - self.seconds, 1e-9):.2f} times as long"

    def _moved(self) -> str:
        """Return how the distance moved, where that can be said."""
        if self.trend.ends is None:
            return ""
        first, last = self.trend.ends
        change = f" ({last / first - 1:+.0%})" if first > 0 else ""
        return f"; distance of generated from real windows {first:.3f} at first, {last:.3f} at the end{change}"


def duration(seconds: float) -> str:
    """Return seconds as a person says them: `0.42 s`, `3 min 20 s`, `1 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
