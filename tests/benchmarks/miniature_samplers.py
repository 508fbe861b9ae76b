"""`python -m benchmarks.miniature_samplers`: the miniature's runs with other samplers and numbers of steps; resumable.

The base, the rivals that were best on validation and ADT as it ships, at the benchmark's cost, on the held-out split.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adt_plugin.demo import report
from adt_plugin.demo.cli import positive
from adt_plugin.demo.diffusion import sample
from adt_plugin.demo.finetune import Budget
from adt_plugin.demo.study import Setting, Study, open_study
from adt_plugin.demo.variants import BASE, Variant, changed
from benchmarks import DOCUMENTS, curve, miniature
from benchmarks.counting import steps_for
from benchmarks.intervals import paired_change
from benchmarks.store import CellStore, by_run

GROUP = "miniature"
WALKS = {
    "DDIM": ("ddim", "leading"),
    "DDIM, trailing": ("ddim", "trailing"),
    "Euler": ("euler", "leading"),
    "DPM++ 2M": ("dpm++", "leading"),
}
"""Sampler and spacing of its grid."""
SHOWN = ("DDIM", "DDIM, trailing", "DPM++ 2M")
"""In the table; Euler walks DDIM's path."""
STEPS = (3, 5, 10, 20, 50)
TRAILING = "ADT, trailing turns"
"""With turns on a trailing grid (`--adt_spacing trailing`)."""
RUNS = (BASE.name, miniature.PLAIN, miniature.FROZEN, "ADT", TRAILING)

Points = dict[str, dict[str, dict[str, float]]]
"""Sampler -> number of its steps -> figures."""


def scored(study: Study, unet: torch.nn.Module) -> Points:
    """Score samples of a denoiser at every point."""
    evaluator = study.evaluator
    noise, labels = evaluator.noise, evaluator.labels
    return {
        name: {
            str(count): asdict(evaluator.score(sample(unet, noise, labels, count, sampler, spacing=spacing), labels))
            for count in STEPS
        }
        for name, (sampler, spacing) in WALKS.items()
    }


def variants() -> dict[str, Variant]:
    """Return run -> how it is tuned."""
    return {BASE.name: BASE, **curve.variants(), TRAILING: Variant(TRAILING, changed({"spacing": "trailing"}))}


def measure(study: Study, store: CellStore, seeds: int, units: float) -> None:
    """Tune and score what the store does not hold: every run with every seed, the base once."""
    tuned = variants()
    for run in RUNS:
        variant = tuned[run]
        for seed in range(seeds if variant.plan else 1):

            def measured(variant: Variant = variant, seed: int = seed) -> dict[str, Any]:
                steps = steps_for(variant.plan, units) if variant.plan else 1
                return {"scores": scored(study, study.tune(variant.plan, Budget(steps=steps), seed).unet)}

            settings = (study.setting, miniature.what_is_read(variant), units, seed, tuple(WALKS.items()), STEPS)
            found, _ = store.get_or_run(f"heldout: {run}, seed {seed}", settings, measured)
            shown = {name: [round(figures["fd"], 2) for figures in points.values()] for name, points in found["scores"].items()}
            print(run, seed, shown, flush=True)


def summary(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md from a store's label -> result; means over the seeds."""
    runs = by_run(results)
    rows = [row for sampler in SHOWN for row in rows_of({run: runs[run] for run in RUNS}, sampler)]
    return report.table(["FD (well-formed share, recall)", "run", "seeds", *(f"{count} steps" for count in STEPS)], rows)


def values(cells: Sequence[dict[str, Any]], sampler: str, count: int, figure: str) -> list[float]:
    """Return a figure of a run, one value per seed."""
    return [cell["scores"][sampler][str(count)][figure] for cell in cells]


def rows_of(runs: dict[str, list[dict[str, Any]]], sampler: str) -> Iterator[list[str]]:
    """Yield the rows of a sampler: every run, and the paired changes of ADT's distance against the two rivals."""
    for run, cells in runs.items():
        texts = []
        for count in STEPS:
            means = [statistics.fmean(values(cells, sampler, count, figure)) for figure in ("fd", "well_formed", "recall")]
            texts.append("{:.2f} ({:.2f}, {:.2f})".format(*means))
        yield [sampler, run, str(len(cells)), *texts]
    for other in (miniature.PLAIN, miniature.FROZEN):
        pairs = ([values(runs[run], sampler, count, "fd") for run in ("ADT", other)] for count in STEPS)
        yield [sampler, f"ADT against {other}", "", *(f"{paired_change(*pair).mean:+.0f} %" for pair in pairs)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's."""
    parser = argparse.ArgumentParser("python -m benchmarks.miniature_samplers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--out", type=Path, default=DOCUMENTS, help="folder of samplers.json (default: docs/benchmarks)")
    given = parser.parse_args(argv)
    study = open_study(Setting(0, "heldout", miniature.Plan.samples, miniature.NOISES[0], STEPS, ()))
    store = CellStore(given.out / "samplers.json", GROUP)
    measure(study, store, given.seeds, miniature.Plan.units)
    print(summary(store.results()[GROUP]))


if __name__ == "__main__":
    main()
