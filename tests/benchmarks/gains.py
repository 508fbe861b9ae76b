"""README.md's first table: what ADT as it ships gains and costs on both beds, against plain training for the same cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from adt_plugin.demo import report
from adt_plugin.demo.base import BASES
from adt_plugin.demo.diffusion import GRIDS
from benchmarks import DOCUMENTS, miniature, small_sd
from benchmarks.intervals import paired_change
from benchmarks.store import CellStore

STEPS = (5, 10, 20)
FIGURES = ("fd", "well_formed", "recall")
GUIDED = {"2": "2 @ 10", "3": "3 @ 10", "7": "7 @ 10"}
"""Guidance, and the point of sampling in the small Stable Diffusion's results."""

Values = Callable[[str, Any, str], list[float]]
"""(run, point, figure) -> its values by seed."""


def row(values: Values, ours: str, plain: str, points: Iterable[Any]) -> list[str]:
    """Return the change of the distance, and the differences of the well-formed share and of recall."""
    pairs = [{figure: (values(ours, point, figure), values(plain, point, figure)) for figure in FIGURES} for point in points]
    return [
        slashed(f"{paired_change(*pair['fd']).mean:+.0f}" for pair in pairs) + " %",
        *(slashed(difference(*pair[figure]) for pair in pairs) for figure in FIGURES[1:]),
    ]


def slashed(parts: Iterable[object]) -> str:
    """Join with slashes, one part for each point."""
    return " / ".join(map(str, parts))


def difference(ours: list[float], theirs: list[float]) -> str:
    """Format the difference of two means of shares."""
    text = f"{statistics.fmean(ours) - statistics.fmean(theirs):+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def table(bases: Sequence[dict[str, Any]], runs: dict[str, Any]) -> str:
    """Return the table from the results of the miniature, one for each base, and those of the small Stable Diffusion."""
    plain = next(name for name in runs if name.startswith(small_sd.PLAIN))

    def on_grid(grid: str, run: str, steps: int, figure: str) -> list[float]:
        return [value for found in bases for value in miniature.values(found, run, figure, steps, grid)]

    seeds = sum(len(found["heldout"]["ADT"]) for found in bases)
    miniatures = {
        f"the miniature, {name} grid, {seeds} seeds": (
            f"{slashed(STEPS)} steps",
            *row(partial(on_grid, grid), "ADT", miniature.PLAIN, STEPS),
        )
        for grid, name in GRIDS.items()
    }
    beds = miniatures | {
        f"a LoRA of the small Stable Diffusion, {len(runs[small_sd.ADT.name])} seeds": (
            f"guidance {slashed(GUIDED)}",
            *row(partial(small_sd.values, runs), small_sd.ADT.name, plain, GUIDED.values()),
        ),
    }
    head = ["from the plateau, at about equal cost", "sampled with", "Fréchet distance", "well-formed share", "recall"]
    return report.table(head, [[name, *cells] for name, cells in beds.items()])


def published() -> str:
    """Return the table from the published JSON files."""
    ((_, results),) = CellStore(DOCUMENTS / "small_sd.json").results().items()
    bases = [json.loads((DOCUMENTS / f"{miniature.name_of(base)}.json").read_text(encoding="utf-8")) for base in range(BASES)]
    return table(bases, small_sd.heldout_runs(results))


if __name__ == "__main__":
    print(published())
