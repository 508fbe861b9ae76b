"""`python -m benchmarks.miniature`: several seeds, ablations, equal steps and equal wall time; resumable."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo import pictures, report
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.cli import QUICK_SETTING, add_shared_arguments, positive, short_endings
from adt_plugin.demo.evaluate import SAMPLER_STEPS
from adt_plugin.demo.finetune import Budget
from adt_plugin.demo.pictures import Curve
from adt_plugin.demo.progress import Bar
from adt_plugin.demo.study import Setting, Study, open_study, scoring_work, tuning_work
from adt_plugin.demo.variants import Variant, hurried
from benchmarks import DOCUMENTS, tradeoff
from benchmarks.ablations import (
    ABLATIONS,
    ADT,
    ALL_SAMPLERS,
    BASE,
    COST_CANDIDATES,
    DIFFUSION,
    FAST_DIFFUSION,
    FROZEN_HEADS,
    SLOW_DIFFUSION,
    SPARSE_ADT,
)
from benchmarks.store import CellStore

CURVE_SECONDS = (11.0, 22.0, 45.0)
NOISE_SEED = 2  # not the demo's, which people look at while they change things

COST = "Cost"
"""Title of the table from which the defaults of `--adt_every`, `--adt_steps` and `--adt_grad_steps` are chosen."""


@dataclass(frozen=True)
class Limit:
    """A budget as data: optimizer steps or seconds."""

    steps: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.seconds:g} s" if self.seconds is not None else f"{self.steps} steps"

    def budget(self) -> Budget:
        """A fresh budget, its clock not yet started."""
        return Budget(self.steps, self.seconds)


@dataclass(frozen=True)
class Row:
    """A row of a table: a variant, how long it is tuned, and its name in the table."""

    name: str
    variant: Variant
    limit: Limit

    @property
    def label(self) -> str:
        """Begins the names of its cells' files."""
        return re.sub(r"[^a-z0-9.]+", "-", f"{self.variant.name} {self.limit}".lower())


@dataclass(frozen=True)
class Section:
    """A table of the benchmark, and what it is there to show."""

    title: str
    text: str
    rows: tuple[Row, ...]
    samplers: tuple[str, ...] = ("ddim",)


def benchmark(steps: int, seconds: float, curve: tuple[float, ...]) -> tuple[Section, ...]:
    """All tables of the benchmark."""
    by_steps, by_time = Limit(steps=steps), Limit(seconds=seconds)
    compared = (BASE, SLOW_DIFFUSION, DIFFUSION, FAST_DIFFUSION, FROZEN_HEADS, ADT)
    timed = (BASE, DIFFUSION, FAST_DIFFUSION, FROZEN_HEADS, SPARSE_ADT, ADT)
    over_time = [
        Row(f"{v.name}, {limit:g} s", v, Limit(seconds=limit)) for v in (DIFFUSION, FAST_DIFFUSION, ADT) for limit in curve
    ]
    return (
        Section("Equal optimizer steps", "What a step with an adversarial turn buys.", _rows(compared, by_steps), ALL_SAMPLERS),
        Section("Equal wall time", "What a second buys: a step with a turn costs several without.", _rows(timed, by_time)),
        Section(
            "Distance against wall time", "Every row is a run of its own, with the learning rate's decay.", tuple(over_time)
        ),
        Section("Ablations", "Each row changes one thing of ADT.", _rows((ADT, *ABLATIONS), by_steps)),
        Section(
            COST,
            "Less work per optimizer step. Beside each row stands what such turns cost in the run of a Stable Diffusion 1.5 "
            "LoRA of 2000 steps at 512 pixels, counted; a crop is half the image's side in both.",
            _rows((BASE, *COST_CANDIDATES), by_steps),
        ),
    )


def _rows(variants: tuple[Variant, ...], limit: Limit) -> tuple[Row, ...]:
    return tuple(Row(variant.name, variant, limit) for variant in variants)


def hurried_sections(tables: tuple[Section, ...]) -> tuple[Section, ...]:
    """The same with hardly any warm-up: for runs that only show that everything works."""
    return tuple(
        replace(table, rows=tuple(replace(row, variant=hurried(row.variant)) for row in table.rows)) for table in tables
    )


@dataclass(frozen=True)
class BenchOptions:
    """What the command line sets; `sections` is what will be run, from `benchmark`."""

    out: Path
    cache: Path
    sections: tuple[Section, ...]
    seeds: int = 3
    setting: Setting = Setting()

    def jobs(self) -> Iterator[tuple[Section, Row, int]]:
        """What is to be run, in order. The base is the same for every seed."""
        for section in self.sections:
            for row in section.rows:
                for seed in range(self.seeds if row.variant.plan else 1):
                    yield section, row, seed


@dataclass
class BenchResults:
    """The finished cells by section."""

    options: BenchOptions
    cells: dict[str, list[Cell]] = field(default_factory=dict)

    def add(self, section: Section, cell: Cell) -> None:
        """Take in a finished cell and write everything anew."""
        self.cells.setdefault(section.title, []).append(cell)
        self.write()

    def write(self) -> None:
        """`benchmark.md` and `benchmark.json`, of what is finished so far."""
        write_atomically(self.options.out / "benchmark.md", "\n\n".join(self.paragraphs()) + "\n")
        report.write_json(self.options.out / "benchmark.json", self.options.setting, self.cells)

    def paragraphs(self) -> Iterator[str]:
        """The Markdown report."""
        setting = self.options.setting
        yield "# Benchmark of the miniature"
        yield (
            f"Written by `python -m benchmarks.miniature` in `tests/`. FD is the Fréchet distance to the {setting.split} "
            f"digits (lower is better) of {setting.samples} samples from white noise, the same noise for every run. "
            f"Figures are mean ± standard deviation over seeds. "
            f"Tuning times are wall time on {setting.threads} thread(s), without pretraining and evaluation."
        )
        for section in self.options.sections:
            if section.title in self.cells:
                yield from self._section(section, report.grouped(self.cells[section.title]))

    def _section(self, section: Section, groups: report.Groups) -> Iterator[str]:
        yield f"## {section.title}\n\n{section.text}"
        for sampler in section.samplers:
            shown = {name: cells for name, cells in groups.items() if sampler in cells[0].scores}
            if shown and len(section.samplers) > 1:
                yield f"### Sampled with {sampler}"
            if shown:
                yield report.comparison(shown, sampler)
        rivals = [name for name in groups if name == BASE.name or name.startswith("diffusion only")]
        if ADT.name in groups and rivals:
            yield gain(groups, ADT.name, rivals)
        if section.title == COST:
            yield tradeoff.tradeoff_table([row.variant for row in section.rows], groups)


def run_bench(results: BenchResults) -> None:
    """Run what is not yet in the store of `options.out`, and write tables, JSON and the picture."""
    options = results.options
    store = CellStore(options.out / "cells" / "cells.json")
    with Bar(bench_work(options)) as bar:
        bar.name("pretraining, kept for next time")
        study = open_study(options.setting, options.cache, bar.advance)
        for section, row, seed in options.jobs():
            bar.name(f"{row.variant.name}, {row.limit}, seed {seed}")
            results.add(section, cell_of(study, store, row, seed))
    draw_over_time(results)
    draw_cost(results)


def cell_of(study: Study, store: CellStore, row: Row, seed: int) -> Cell:
    """The cell of a row and a seed, from the store or measured now."""

    def measured() -> dict[str, Any]:
        return asdict(study.score(row.variant, study.tune(row.variant.plan, row.limit.budget(), seed), seed))

    found, fresh = store.get_or_run(f"{row.label}-seed{seed}", (study.setting, row.variant, row.limit, seed), measured)
    if not fresh:
        study.progress(row_work(study.setting, row))
    return replace(Cell.from_json(json.dumps(found)), run=row.name)


def row_work(setting: Setting, row: Row) -> float:
    """What one seed of a row will cost, in diffusion steps, roughly."""
    return tuning_work(row.variant.plan, row.limit.budget()) + scoring_work(setting, row.variant)


def bench_work(options: BenchOptions) -> float:
    """Of the whole benchmark from nothing, in diffusion steps, roughly."""
    return options.setting.recipe.work + sum(row_work(options.setting, row) for _, row, _ in options.jobs())


def draw_over_time(results: BenchResults) -> None:
    """`wall-time.png`: distance against wall time from the section of that name, one panel per number of sampler steps."""
    section = next((section for section in results.options.sections if section.title == "Distance against wall time"), None)
    if section is None:
        return
    groups = report.grouped(results.cells[section.title])
    names = dict.fromkeys(row.variant.name for row in section.rows)
    panels = {
        (f"at {steps} sampler steps", "seconds of tuning"): {
            name: _curves([groups[row.name] for row in section.rows if row.variant.name == name], steps) for name in names
        }
        for steps in SAMPLER_STEPS
    }
    pictures.curves(results.options.out / "wall-time.png", panels)


def draw_cost(results: BenchResults) -> None:
    """`cost-curve.png`: distance against counted cost, if that table is among the sections."""
    for section in results.options.sections:
        if section.title == COST:
            variants = [row.variant for row in section.rows if row.variant.plan]
            tradeoff.draw_tradeoff(
                results.options.out / "cost-curve.png", variants, report.grouped(results.cells[section.title])
            )


def _curves(points: list[list[Cell]], steps: int) -> list[Curve]:
    """One curve per seed through the cells of successive limits."""
    return [[(cell.seconds, cell.scores["ddim"][steps].fd) for cell in seeds] for seeds in zip(*points, strict=True)]


def gain(groups: report.Groups, name: str, rivals: Sequence[str]) -> str:
    """Say how much lower `name`'s mean distances are than the best rival's, column by column, and its recall."""
    parts = []
    for steps in SAMPLER_STEPS:
        best = min(report.mean(groups[rival], "fd", steps) for rival in rivals)
        change = 100 * (report.mean(groups[name], "fd", steps) / best - 1)
        recall = report.mean(groups[name], "recall", steps) - max(
            report.mean(groups[rival], "recall", steps) for rival in rivals
        )
        parts.append(f"{change:+.0f} % (recall {recall:+.3f}) at {steps} steps")
    return f"{name} against the best of {len(rivals)} others in each column: FD {', '.join(parts)}."


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark with these arguments, or with the command line's.

    Raises:
        SystemExit: 2 for wrong options, 130 after Ctrl-C, 1 with one line where an extra is not installed.
    """
    given = _parser().parse_args(argv)
    with short_endings(given.out):
        run_bench(BenchResults(_options(given)))
    print(f"Written: benchmark.md, benchmark.json and its pictures in {given.out.resolve()}")


def _options(given: argparse.Namespace) -> BenchOptions:
    if given.quick:
        tables = hurried_sections(benchmark(steps=4, seconds=0.2, curve=(0.1, 0.2)))
    else:
        tables = benchmark(given.steps, given.seconds, CURVE_SECONDS)
    tables = tuple(table for table in tables if given.only in (None, table.title.lower()))
    setting = QUICK_SETTING if given.quick else Setting()
    setting = replace(setting, split=given.split, threads=given.threads, noise_seed=NOISE_SEED)
    return BenchOptions(given.out, given.cache, tables, given.seeds, setting)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.miniature", description="The miniature's benchmark: seeds, ablations, wall time. Resumable."
    )
    parser.add_argument("--seeds", type=positive, default=3, help="fine-tunes of each kind (default: 3)")
    parser.add_argument("--steps", type=positive, default=300, help="optimizer steps at equal steps (default: 300)")
    parser.add_argument("--seconds", type=float, default=45.0, help="seconds of tuning at equal wall time (default: 45)")
    parser.add_argument("--out", type=Path, default=DOCUMENTS, help="folder for tables (default: docs/benchmarks)")
    parser.add_argument(
        "--split", choices=("heldout", "validation"), default="heldout", help="validation to choose settings (default: heldout)"
    )
    titles = [table.title.lower() for table in benchmark(1, 1.0, CURVE_SECONDS)]
    parser.add_argument("--only", choices=titles, help="one table instead of all")
    add_shared_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
