"""Cells as tables (Markdown that is also readable in a terminal) and as JSON."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.diffusion import GRIDS, LEADING

Groups = dict[str, list[Cell]]
"""Cells by the name of their run, one per seed, in the order of their first appearance."""


def grouped(cells: Iterable[Cell]) -> Groups:
    """Group cells by the name of their run."""
    groups: Groups = {}
    for cell in cells:
        groups.setdefault(cell.run, []).append(cell)
    return groups


def values(cells: Sequence[Cell], figure: str, steps: int, grid: str = LEADING) -> list[float]:
    """Return one figure, an attribute of `Scores`, of every cell."""
    return [getattr(cell.scores[grid][steps], figure) for cell in cells]


def mean(cells: Sequence[Cell], figure: str, steps: int, grid: str = LEADING) -> float:
    """Return a figure's mean over seeds."""
    return statistics.fmean(values(cells, figure, steps, grid))


def spread(numbers: Sequence[float], digits: int) -> str:
    """Format `mean ± standard deviation` over seeds (of the sample, n - 1), or the number where there is only one."""
    text = f"{statistics.fmean(numbers):.{digits}f}"
    return text if len(numbers) < 2 else f"{text} ± {statistics.stdev(numbers):.{digits}f}"


SHOWN_STEPS = (5, 10, 20)
"""Numbers of sampler steps that tables have a column for."""


def comparison(groups: Groups, grid: str = LEADING) -> str:
    """Tabulate one row per run: distances, well-formed share, recall, novelty, optimizer steps, wall time."""
    head = [
        f"{GRIDS[grid]} grid",
        "seeds",
        *(f"FD@{n}" for n in SHOWN_STEPS),
        *(f"well-formed@{n}" for n in SHOWN_STEPS),
        "recall@10",
        "pixel FD@10",
        "novelty@10",
        "steps",
        "tuning, s",
    ]
    return table(head, [_row(name, cells, grid) for name, cells in groups.items()])


def _row(name: str, cells: Sequence[Cell], grid: str) -> list[str]:
    return [
        name,
        str(len(cells)),
        *(spread(values(cells, "fd", n, grid), 2) for n in SHOWN_STEPS),
        *(spread(values(cells, "well_formed", n, grid), 3) for n in SHOWN_STEPS),
        spread(values(cells, "recall", 10, grid), 3),
        spread(values(cells, "pixel_fd", 10, grid), 2),
        spread(values(cells, "novelty", 10, grid), 2),
        f"{statistics.fmean(cell.steps for cell in cells):.0f}",
        f"{statistics.fmean(cell.seconds for cell in cells):.1f}",
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns, the first one flush left."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def by_sampler_steps(cells: Iterable[Cell], grid: str = LEADING) -> dict[str, list[list[tuple[float, float]]]]:
    """Return by run one curve per seed: number of sampler steps, Fréchet distance."""
    return {
        name: [[(float(steps), scores.fd) for steps, scores in cell.scores[grid].items()] for cell in group]
        for name, group in grouped(cells).items()
    }


def machine() -> dict[str, Any]:
    """Return what wall times depend on, without anything that names the machine."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "system": platform.system(),
    }


def write_json(path: Path, setting: Any, sections: Mapping[str, Sequence[Cell]]) -> None:
    """Write all cells of all sections, with the setting and the machine they were measured on."""
    cells = {title: [asdict(cell) for cell in section] for title, section in sections.items()}
    write_atomically(path, json.dumps({"setting": asdict(setting), "machine": machine(), "sections": cells}, indent=1) + "\n")
