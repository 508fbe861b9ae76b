"""What was found, as a document: `card.md` and the numbers behind it in `card.json`, to be copied into docs/benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import RUN_STEPS
from adt_plugin.core.run.files import write_atomically
from adt_plugin.core.schedule import TurnSchedule

Cells = dict[str, dict[str, Any]]
"""What the cells of a part left behind, by their names."""

INTRODUCTION = """# Measured on a card

Written by `tests/gpu/run.sh`; every number is in [card.json](card.json). Models and the frozen backbone are random and of true
size. *A step* is sd-scripts' own, after the first ones; *with a turn* is one with an adversarial turn, whose stages are timed
(`--adt_profile`). *The run* is one of 2000 steps with the default schedule of turns, the warm-up's as long as the others, as a
multiple of the plain one. Peaks are the most that PyTorch held, in GiB, and *reserved* is what it took from the driver. A dash
is what was not measured."""


def write_tables(out: Path, found: dict[str, Cells]) -> None:
    """Write both files into a folder.

    Args:
        found: the results of every part, by its name.
    """
    write_atomically(out / "card.json", json.dumps({part: cells for part, cells in found.items() if cells}, indent=1) + "\n")
    write_atomically(out / "card.md", "\n".join(document(found)) + "\n")


def document(found: dict[str, Cells]) -> Iterator[str]:
    """Yield the lines of the document."""
    done = {part: finished(cells) for part, cells in found.items()}
    yield INTRODUCTION
    yield from (f"\n{line}" for line in devices(done.values()))
    runs = [row for part, cells in done.items() for row in run_rows(part, cells)]
    head = (
        "run",
        "a step, s",
        "with a turn, s",
        "a turn, s",
        "the run",
        "peak without",
        "with",
        "reserved",
        "turns",
        "skipped",
    )
    yield from table("sd-scripts' own scripts", head, runs)
    yield from table("adt gpu-check", ("model", "part", "", "found"), [r for cells in done.values() for r in check_rows(cells)])
    costs = [row for part, cells in done.items() for row in cost_rows(part, cells)]
    head = (
        "",
        "a step, s",
        "a turn, low, s",
        "fast, s",
        "one graph, s",
        "step, GiB",
        "low, GiB",
        "fast, GiB",
        "one graph, GiB",
    )
    yield from table("On the workbench of adt cost", head, costs)
    yield from table("Does it help", ("seed", "", *EFFECT), [row for cells in done.values() for row in effect_rows(cells)])
    bad = [(part, name, cell["status"], last_line(cell)) for part, cells in found.items() for name, cell in cells.items()]
    yield from table("Not measured", ("part", "cell", "", "why"), [row for row in bad if row[2] != "done"])


def finished(cells: Cells) -> Cells:
    """The results of the cells that have ended well."""
    return {name: cell["result"] for name, cell in cells.items() if cell["status"] == "done" and cell.get("result")}


def devices(parts: Iterable[Cells]) -> list[str]:
    """What it was measured on."""
    names = {cell["device"] for cells in parts for cell in cells.values() if "device" in cell}
    return sorted(f"{name}." for name in names if not any(other.startswith(f"{name},") for other in names))


def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield a section with a table, where there is anything to put into it."""
    if rows:
        yield from (f"\n## {title}\n", f"| {' | '.join(head)} |", "|" + "---|" * len(head))
        yield from (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def run_rows(part: str, cells: Cells) -> Iterator[tuple[str, ...]]:
    """Yield a row for every run with the plugin, beside the plain one; plain ones without a partner stand alone."""
    partners = {name: partner(name, cells) for name in cells if "plain" not in name.split()}
    for name, cell in cells.items():
        if "plain" in name.split():
            if name not in partners.values() and "step_seconds" in cell:
                yield run_row(f"{part} {name}", {}, cell)
        elif "step_seconds" in cell:
            yield run_row(f"{part} {name}", cell, cells.get(partners[name], {}))


def partner(name: str, cells: Cells) -> str:
    """The plain run that has most words in common with a run with the plugin, and none that this one lacks; or nothing."""
    words = set(name.split())
    plain = [other for other in cells if "plain" in other.split() and set(other.split()) - {"plain"} <= words]
    return max(plain, key=lambda other: len(other.split()), default="")


def run_row(name: str, adt: dict[str, Any], plain: dict[str, Any]) -> tuple[str, ...]:
    """One row: both runs, or what there is of them."""
    step, turned, turn = pace(plain), pace(adt), None
    if step is not None and turned is not None:
        turn = turned - step
    times = (number(step), number(turned), number(turn), number(run_ratio(step, turn)))
    peaks = (number(plain.get("peak_gib")), number(adt.get("peak_gib")), number(adt.get("reserved_gib")))
    return (name, *times, *peaks, number(adt.get("turns")), number(adt.get("skipped")))


def pace(run: dict[str, Any]) -> float | None:
    """Seconds of a step."""
    return run.get("later_step_seconds", run.get("step_seconds"))


def run_ratio(step: float | None, turn: float | None) -> float | None:
    """How many times as long as the plain one a run takes."""
    if not step or turn is None:
        return None
    turns = TurnSchedule.from_config(ADTConfig(), RUN_STEPS).count(RUN_STEPS)
    return 1 + (turns.warmup + turns.adversarial) * turn / (RUN_STEPS * step)


def check_rows(cells: Cells) -> Iterator[tuple[str, ...]]:
    """Yield what `gpu-check` said of every model."""
    for name, cell in cells.items():
        for finding in cell.get("findings", ()):
            yield (name, finding["part"], "ok" if finding["good"] else "BAD", finding["said"])


def cost_rows(part: str, cells: Cells) -> Iterator[tuple[str, ...]]:
    """Yield what steps and turns take by themselves."""
    keys = ("step", "turn_low", "turn_fast", "one_graph", "step_gib", "turn_low_gib", "turn_fast_gib", "one_graph_gib")
    yield from (
        (f"{part} {name}", *(number(cell.get(key)) for key in keys)) for name, cell in cells.items() if "turn_low" in cell
    )


EFFECT = ("fd_5", "fd_10", "fd_20", "well_formed_5", "well_formed_10", "well_formed_20")
"""Columns: distances to real images and shares of well-formed ones, by sampler steps."""


def effect_rows(cells: Cells) -> Iterator[tuple[str, ...]]:
    """Yield the scores of the base, of plain training and of ADT."""
    for name, cell in cells.items():
        for kind in ("base", "plain", "adt"):
            if kind in cell:
                yield (name, kind, *(number(cell[kind].get(key)) for key in EFFECT))


def number(value: float | None) -> str:
    """Three figures, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def last_line(cell: dict[str, Any]) -> str:
    """The last line of an error."""
    return (cell.get("error", "").strip().splitlines() or [""])[-1]
