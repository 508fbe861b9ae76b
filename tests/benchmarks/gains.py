"""README.md's first table and picture: what ADT as it ships changes on both beds, against plain training for the same cost.

cd tests && python -m benchmarks.gains    prints the table, and draws docs/benchmarks/gains.png
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adt_plugin.demo import pictures, report
from adt_plugin.demo.base import BASES
from adt_plugin.demo.diffusion import GRIDS
from adt_plugin.demo.variants import BASE
from benchmarks import DOCUMENTS, miniature, pieces, small_sd
from benchmarks.floor import TRAINING
from benchmarks.intervals import paired_change

STEPS = (5, 10, 20)
FIGURES = ("fd", "well_formed", "recall")
GUIDED = {"2": "2 @ 10", "3": "3 @ 10", "7": "7 @ 10"}
"""Guidance, and the point of sampling in the small Stable Diffusion's results."""

PLATEAU = "base: the plateau"
"""As the picture calls what all begin from."""

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


@dataclass(frozen=True)
class Beds:
    """The published results of both beds.

    Attributes:
        bases: of the miniature, one for each base.
        runs: of the small Stable Diffusion on the held-out split, by run and seed.
        floor: what its training images score.
        pieces: its shares of images in one piece, by run and seed; those of training images among them.
    """

    bases: Sequence[dict[str, Any]]
    runs: dict[str, Any]
    floor: dict[str, float]
    pieces: Mapping[str, Sequence[dict[str, float]]]

    @property
    def plain(self) -> str:
        """The small Stable Diffusion's name for plain training."""
        return next(name for name in self.runs if name.startswith(small_sd.PLAIN))

    @property
    def seeds(self) -> int:
        """Of the miniature, over its bases."""
        return sum(len(found["heldout"]["ADT"]) for found in self.bases)

    def on_grid(self, grid: str, run: str, steps: int, figure: str) -> list[float]:
        """Return a figure of a run of the miniature by seed, over its bases."""
        return [value for found in self.bases for value in miniature.values(found, run, figure, steps, grid)]

    def guided(self, run: str, point: str, figure: str) -> list[float]:
        """Return a figure of a run of the small Stable Diffusion by seed."""
        return small_sd.values(self.runs, run, point, figure)

    def apart(self, run: str, point: str) -> float:
        """Return how many percent of its images are not in one piece."""
        return 100 * (1 - statistics.fmean(cell[point] for cell in self.pieces[run]))


def table(beds: Beds) -> str:
    """Return README.md's first table."""
    miniatures = [
        (
            f"the miniature, {name} grid, {beds.seeds} seeds",
            f"{slashed(STEPS)} steps",
            *row(partial(beds.on_grid, grid), "ADT", miniature.PLAIN, STEPS),
        )
        for grid, name in GRIDS.items()
    ]
    loras = [
        (name, f"guidance {slashed(GUIDED)}", *row(beds.guided, small_sd.ADT.name, other, GUIDED.values()))
        for name, other in (
            (f"a LoRA of the small Stable Diffusion, {len(beds.runs[small_sd.ADT.name])} seeds", beds.plain),
            ("the same LoRA, against the plateau itself", small_sd.BEFORE),
        )
    ]
    head = ["from the plateau, at about equal cost", "sampled with", "Fréchet distance", "well-formed share", "recall"]
    return report.table(head, [*loras, *miniatures])


def draw(beds: Beds, path: Path) -> None:
    """Draw the plateau, plain training, ADT and training images: distances, and of the LoRA the digits that fall apart."""

    def means(values: Values, runs: dict[str, str], points: Iterable[Any]) -> dict[str, list[float]]:
        points = list(points)
        return {shown: [statistics.fmean(values(run, point, "fd")) for point in points] for shown, run in runs.items()}

    loras = {PLATEAU: small_sd.BEFORE, "plain training": beds.plain, "ADT": small_sd.ADT.name}
    guided = means(beds.guided, loras, GUIDED.values())
    apart = {shown: [beds.apart(run, point) for point in GUIDED.values()] for shown, run in loras.items()}
    miniatures = {PLATEAU: BASE.name, "plain training": miniature.PLAIN, "ADT": "ADT"}
    by_grid = [means(partial(beds.on_grid, grid), miniatures, STEPS) for grid in GRIDS]
    groups = [f"{steps} steps,\n{name}" for name in GRIDS.values() for steps in STEPS]
    both = {run: [value for found in by_grid for value in found[run]] for run in miniatures}
    nearest = statistics.fmean(found[TRAINING]["fd"] for found in beds.bases)
    guidances = [f"guidance {name}" for name in GUIDED]
    panels = {
        "Distance to real images:\na LoRA of the small Stable Diffusion": (guidances, guided, beds.floor["fd"]),
        "Digits that fall apart, %:\nthe same LoRA": (guidances, apart, beds.apart(TRAINING, GUIDED["3"])),
        "Distance to real images:\nthe miniature, without guidance": (groups, both, nearest),
    }
    pictures.bars(path, panels)


def published() -> Beds:
    """Read the published JSON files."""
    results = small_sd.published()
    runs, floor = small_sd.heldout_runs(results), small_sd.floor_of(results)
    return Beds([miniature.published(base) for base in range(BASES)], runs, floor, pieces.main_runs(pieces.published()))


if __name__ == "__main__":
    draw(published(), DOCUMENTS / "gains.png")
    print(table(published()))
