"""`python -m benchmarks.whole_run`: a LoRA from nothing by the real `train_network.py`, as users train it; resumable.

A plain command, the same with `--adt`, and the plain one for about as long as `--adt` takes. The held-out split, on which all
are scored, has chosen nothing; the rate is the one that the last mile's LoRA was trained with.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo import report
from benchmarks.host_lora import Recipe, host_folder
from benchmarks.small_sd import ADT, LR, SHOWN, Bench, distances, heldout_runs, host_parser, mean, paragraphs, store_of

STEPS, LONGER = 2000, 3300
"""Optimizer steps of the command, and plain ones of about the processor time that it takes with `--adt`."""

RUNS = (
    *(Recipe(f"plain training, {steps} steps", steps, LR) for steps in (STEPS, LONGER)),
    Recipe(ADT.name, STEPS, LR, ("--adt", "--adt_disc_width", "32")),  # heads shrink with the backbone
)
TITLE = "The small Stable Diffusion, a whole run of a LoRA through the real host"


def measured(bench: Bench, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Train and score every run with every seed; return run -> results by seed."""
    found: dict[str, list[dict[str, Any]]] = {recipe.name: [] for recipe in RUNS}
    for seed in seeds:
        for recipe in reversed(RUNS):
            found[recipe.name].append(bench.cell(recipe, seed, "heldout"))
    return found


def runs_of(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return run -> results by seed, from a store's label -> result, in the order of `RUNS`."""
    found = heldout_runs(dict(sorted(results.items())))
    return {recipe.name: found.get(recipe.name, []) for recipe in RUNS}


def summary(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of docs/benchmarks.md: Fréchet distances, well-formed shares in brackets, means over the seeds."""
    rows = [
        [
            run,
            str(len(cells)),
            f"{statistics.fmean(cell['seconds'] for cell in cells):.0f}",
            *distances(cells),
            f"{mean(cells, '3 @ 10', 'recall'):.2f}",
        ]
        for run, cells in runs.items()
    ]
    return report.table(["FD (well-formed share)", "runs", "processor time, s", *SHOWN, "recall, 3 @ 10"], rows)


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
    given = host_parser("whole_run", __doc__, seeds=3).parse_args(argv)
    host = host_folder(given.host)
    torch.set_num_threads(1)
    bench = Bench(host, store_of(host, given.out / "whole_run.json"), given.work, begin=None)
    runs = measured(bench, range(1, given.seeds + 1))
    write_atomically(given.out / "whole_run.md", "\n\n".join(paragraphs(runs, TITLE, "whole_run")) + "\n")


if __name__ == "__main__":
    main()
