"""README.md's first table: what ADT as it ships gains and costs on both beds, against plain training for the same cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from adt_plugin.demo import report
from benchmarks import DOCUMENTS, miniature, miniature_samplers, small_sd
from benchmarks.intervals import paired_change
from benchmarks.store import CellStore, by_run

STEPS = (5, 10, 20)
TRAILING = "DDIM, trailing"
GUIDED = {"2": "2 @ 10", "3": "3 @ 10", "7": "7 @ 10"}
"""Guidance, and the point of sampling in the small Stable Diffusion's results."""

Values = Callable[[Any, str], tuple[list[float], list[float]]]
"""(point, figure) -> values of ADT and of plain training by seed, in the same order."""


def of_the_miniature(found: dict[str, Any]) -> Values:
    """Return how to read the miniature's results."""

    def values(steps: int, figure: str) -> tuple[list[float], list[float]]:
        ours, theirs = (miniature.values(found, run, figure, steps) for run in ("ADT", miniature.PLAIN))
        return ours, theirs

    return values


def of_the_small_sd(runs: dict[str, Any]) -> Values:
    """Return how to read the small Stable Diffusion's results."""
    plain = next(name for name in runs if name.startswith(small_sd.PLAIN))

    def values(point: str, figure: str) -> tuple[list[float], list[float]]:
        ours, theirs = (small_sd.values(runs, run, point, figure) for run in (small_sd.ADT.name, plain))
        return ours, theirs

    return values


def of_a_trailing_grid(results: dict[str, Any]) -> Values:
    """Return how to read the miniature's results on a trailing grid, from a store's label -> result."""
    runs = by_run(results)

    def values(steps: int, figure: str) -> tuple[list[float], list[float]]:
        ours, theirs = (miniature_samplers.values(runs[run], TRAILING, steps, figure) for run in ("ADT", miniature.PLAIN))
        return ours, theirs

    return values


def row(values: Values, points: list[Any]) -> list[str]:
    """Return the change of the distance, and the differences of the well-formed share and of recall."""
    changes = (paired_change(*values(point, "fd")).mean for point in points)
    return [
        slashed(f"{change:+.0f}" for change in changes) + " %",
        *(slashed(difference(*values(point, figure)) for point in points) for figure in ("well_formed", "recall")),
    ]


def slashed(parts: Iterable[object]) -> str:
    """Join with slashes, one part for each point."""
    return " / ".join(map(str, parts))


def difference(ours: list[float], theirs: list[float]) -> str:
    """Format the difference of two means of shares."""
    text = f"{statistics.fmean(ours) - statistics.fmean(theirs):+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def table(found: dict[str, Any], trailing: dict[str, Any], runs: dict[str, Any]) -> str:
    """Return the table from the results of the miniature, those on a trailing grid, and those of the small SD."""
    beds = {
        f"the miniature, {len(found['heldout']['ADT'])} seeds": (
            f"{slashed(STEPS)} steps, leading",
            *row(of_the_miniature(found), list(STEPS)),
        ),
        f"the same, {len(by_run(trailing)['ADT'])} seeds": (
            f"{slashed(STEPS)} steps, trailing",
            *row(of_a_trailing_grid(trailing), list(STEPS)),
        ),
        f"a LoRA of the small Stable Diffusion, {len(runs[small_sd.ADT.name])} seeds": (
            f"guidance {slashed(GUIDED)}",
            *row(of_the_small_sd(runs), list(GUIDED.values())),
        ),
    }
    head = ["from the plateau, at about equal cost", "sampled with", "Fréchet distance", "well-formed share", "recall"]
    return report.table(head, [[name, *cells] for name, cells in beds.items()])


def published() -> str:
    """Return the table from the published JSON files."""
    ((_, results),) = CellStore(DOCUMENTS / "small_sd.json").results().items()
    found = json.loads((DOCUMENTS / "miniature.json").read_text(encoding="utf-8"))
    trailing = CellStore(DOCUMENTS / "samplers.json").results()[miniature_samplers.GROUP]
    return table(found, trailing, small_sd.heldout_runs(results))


if __name__ == "__main__":
    print(published())
