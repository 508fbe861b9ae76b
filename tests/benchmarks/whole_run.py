"""`python -m benchmarks.whole_run`: from nothing by the real scripts of the host, as users train; resumable.

A plain command, the same with `--adt`, and the plain one for about as long as `--adt` takes: a LoRA by `train_network.py`, or
with `--full` all weights of the UNet by `train_db.py`. The held-out split, on which all are scored, has chosen nothing. A
LoRA's rate is the one that the last mile's was trained with; full fine-tuning takes the better of two on validation.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adt_plugin.demo import report
from benchmarks.host_training import Recipe, host_folder
from benchmarks.small_sd import (
    ADT,
    LR,
    SHOWN,
    Bench,
    distances,
    host_parser,
    mean,
    store_of,
)
from benchmarks.store import CellStore, run_of, seed_of

STEPS, LONGER = 2000, 3300
"""Optimizer steps of the command, and plain ones of about the processor time that it takes with `--adt`."""

WITH_ADT = ("--adt", "--adt_disc_width", "32")  # heads shrink with the backbone
PLAIN, LONG_PLAIN = (Recipe(f"plain training, {steps} steps", steps, LR) for steps in (STEPS, LONGER))
WHOLE_ADT = Recipe(ADT.name, STEPS, LR, WITH_ADT)
RUNS = (PLAIN, WHOLE_ADT)
"""What is run with every seed."""
BUDGETS = (
    (1.0, PLAIN, replace(WHOLE_ADT, name=f"{ADT.name}, 1050 steps", steps=1050)),
    (1.5, Recipe("plain training, 3000 steps", 3000, LR), replace(WHOLE_ADT, name=f"{ADT.name}, 1600 steps", steps=1600)),
    (1.7, LONG_PLAIN, WHOLE_ADT),
    (2.0, Recipe("plain training, 4000 steps", 4000, LR), replace(WHOLE_ADT, name=f"{ADT.name}, 2250 steps", steps=2250)),
    (3.0, Recipe("plain training, 6000 steps", 6000, LR), replace(WHOLE_ADT, name=f"{ADT.name}, 3350 steps", steps=3350)),
)
"""Total time in that of 2000 plain steps, and a plain run and one of ADT that take about so long."""
BUDGETS_SEED, SEEDS, FULL_SEEDS, LONGER_SEEDS = 1, 4, 1, (1, 2)
FULL_TRIALS = tuple(Recipe(f"plain training, lr {lr}", STEPS, lr, full=True) for lr in ("3e-4", "1e-3"))


def full_runs(bench: Bench) -> tuple[Recipe, ...]:
    """Return the runs of full fine-tuning, at the rate that is best on validation; tried where the store has no trials."""
    lr = bench.best(FULL_TRIALS).lr
    return tuple(replace(recipe, lr=lr, full=True) for recipe in (PLAIN, WHOLE_ADT))


def measured(bench: Bench, recipes: Sequence[Recipe], seeds: Sequence[int]) -> None:
    """Train and score every run with every seed."""
    for seed in seeds:
        for recipe in reversed(recipes):
            bench.cell(recipe, seed, "heldout")


def run_budgets(bench: Bench) -> None:
    """Train and score the runs of every length, with one seed."""
    for _, plain, adt in BUDGETS:
        for recipe in (adt, plain):
            bench.cell(recipe, BUDGETS_SEED, "heldout")


BySeed = dict[str, dict[int, dict[str, Any]]]
"""Run -> seed -> result."""


def runs_of(results: dict[str, Any]) -> BySeed:
    """Sort a store's label -> result by run, plain training first and ADT last, and by seed."""
    found: BySeed = {}
    for recipe in (PLAIN, LONG_PLAIN, WHOLE_ADT):
        seeds = {seed_of(label): result for label, result in results.items() if run_of(label) == recipe.name}
        if seeds:
            found[recipe.name] = dict(sorted(seeds.items()))
    return found


def full_store(host: Path, results: Path) -> CellStore:
    """Return the store of a host's full fine-tuning, in a JSON file."""
    return CellStore(results, f"full fine-tuning, {host.name}")


def summary(runs: BySeed) -> str:
    """Return a table of docs/benchmarks.md: Fréchet distances, well-formed shares in brackets, means over the seeds."""
    rows = [
        [
            run,
            ", ".join(map(str, seeds)),
            f"{statistics.fmean(cell['seconds'] for cell in seeds.values()):.0f}",
            *distances(list(seeds.values())),
            f"{mean(list(seeds.values()), '3 @ 10', 'recall'):.2f}",
        ]
        for run, seeds in runs.items()
    ]
    return report.table(["FD (well-formed share)", "seeds", "processor time, s", *SHOWN, "recall, 3 @ 10"], rows)


def changes(runs: BySeed, plain_run: Recipe = PLAIN) -> str:
    """Return a table of docs/benchmarks.md: seed by seed, how the other runs' figures differ from plain training's.

    Fréchet distance in percent, and the well-formed share in brackets; of plain runs those that are no longer are left out.
    """
    shorter = {recipe.name for recipe in (PLAIN, LONG_PLAIN) if recipe.steps <= plain_run.steps}
    plain, rows = runs.get(plain_run.name, {}), []
    for run, seeds in runs.items():
        for seed in sorted(seeds.keys() & plain.keys()) if run not in shorter else ():
            pairs = [(seeds[seed]["scores"][point], plain[seed]["scores"][point]) for point in SHOWN]
            rows.append([run, str(seed), *(difference(*pair) for pair in pairs)])
    return report.table([f"against {plain_run.steps} plain steps", "seed", *SHOWN], rows)


def budgets_table(results: dict[str, Any]) -> str:
    """Return a table of docs/benchmarks.md from a store's label -> result: plain training and ADT at equal total time."""
    rows = []
    for budget, *recipes in BUDGETS:
        labels = [f"heldout: {recipe.name}, seed {BUDGETS_SEED}" for recipe in recipes]
        if not set(labels) <= results.keys():
            continue
        plain, adt = (results[label] for label in labels)
        for recipe, cell in zip(recipes, (plain, adt), strict=True):
            name = f"{run_kind(recipe)}, {recipe.steps} steps"
            rows.append([f"{budget:g}", name, str(cell["seconds"]), *distances([cell]), f"{recall(cell):.2f}"])
        changed = (difference(adt["scores"][point], plain["scores"][point]) for point in SHOWN)
        rows.append([f"{budget:g}", "ADT against plain", "", *changed, f"{recall(adt) - recall(plain):+.2f}"])
    return report.table(["total time", "run", "processor time, s", *SHOWN, "recall, 3 @ 10"], rows)


def run_kind(recipe: Recipe) -> str:
    """Return a run's name without its number of steps."""
    return recipe.name.partition(",")[0]


def recall(cell: dict[str, Any]) -> float:
    """Return a run's recall where one would sample."""
    return mean([cell], "3 @ 10", "recall")


def difference(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Format the change of the distance in percent, and that of the well-formed share."""
    return f"{100 * (ours['fd'] / theirs['fd'] - 1):+.0f} % ({ours['well_formed'] - theirs['well_formed']:+.2f})"


def moments_table(found: dict[str, Any]) -> str:
    """Return the table of docs/method.md from `moments.json`: how far a LoRA moved, distance and well-formed share."""
    points = list(next(iter(found.values()))["scores"])
    rows = [
        [name, f"{cell['moved']:.2f}", *(f"{s['fd']:.2f} ({s['well_formed']:.2f})" for s in cell["scores"].values())]
        for name, cell in found.items()
    ]
    return report.table(["the last 200 of 2000 steps", "moved by", *points], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's.

    Raises SystemExit where no host is found.
    """
    parser = host_parser("whole_run", __doc__, seeds=SEEDS)
    parser.add_argument("--full", action="store_true", help=f"full fine-tuning instead of a LoRA, {FULL_SEEDS} seed")
    parser.add_argument("--lengths", action="store_true", help="shorter and longer runs, plain and with --adt, at equal time")
    given = parser.parse_args(argv)
    host, results = host_folder(given.host), given.out / "whole_run.json"
    torch.set_num_threads(1)
    if given.full:
        bench = Bench(host, full_store(host, results), given.work / "full", begin=None)
        measured(bench, full_runs(bench), range(1, FULL_SEEDS + 1))
        return
    bench = Bench(host, store_of(host, results), given.work, begin=None)
    if given.lengths:
        run_budgets(bench)
        return
    measured(bench, RUNS, range(1, given.seeds + 1))
    measured(bench, (LONG_PLAIN,), LONGER_SEEDS)
    runs = runs_of(bench.store.results()[bench.store.group])
    print(summary(runs), changes(runs), sep="\n\n")


if __name__ == "__main__":
    main()
