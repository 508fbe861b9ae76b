"""`python -m benchmarks.miniature`: plain training continued, frozen heads and ADT from the plateau, at equal cost; resumable.

Rivals are tuned on the validation split, with an average of the weights and without. Whoever does best there, and ADT as it
ships, without an average since sd-scripts has none, are then run with several seeds and scored on the held-out split, which
has chosen nothing. With ablations beside those of the paper, the best of them is run there, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import product, repeat
from math import log
from pathlib import Path
from typing import Any

from torch import Tensor

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo import pictures, report
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.cli import add_shared_arguments, duration, positive, short_endings
from adt_plugin.demo.diffusion import GRIDS, LEADING, TRAILING
from adt_plugin.demo.finetune import Budget
from adt_plugin.demo.progress import Bar
from adt_plugin.demo.study import Setting, Study, open_study
from adt_plugin.demo.variants import ADT, BASE, SHIPPED, Variant, changed, hurried
from benchmarks import DOCUMENTS
from benchmarks.ablations import ABLATIONS, FROZEN_TRIALS, PLAIN_TRIALS, without_average
from benchmarks.counting import steps_for
from benchmarks.floor import TRAINING, floor
from benchmarks.intervals import change_text, difference_text, interval_text
from benchmarks.store import CellStore, options_but

STEPS = (3, 5, 10, 20)
JUDGED = (5, 10, 20)
"""Numbers of sampler steps whose distances choose between trials."""
NOISES = (11, 12, 13)
HELDOUT = {LEADING: "heldout", TRAILING: "heldout, trailing grid"}
"""How results on the held-out split are called, by the grid that samples are drawn on."""
DETECTED = 10
"""Sampler steps, on the trailing grid and for the first noise, whose samples a fresh classifier is to tell from real images."""
FIGURES = ("fd", "kid", "pixel_fd", "precision", "recall", "well_formed", "novelty", "detectability")
PARTS = "paper"
"""The group of ablations that take something away; what is at its best is chosen from the others, by one run each."""
RIVALS = "frozen"
"""The group of ablations whose heads are never trained."""
OTHER_SEEDS = 5
"""Seeds from a base that is not the first."""
PLAIN, FROZEN, BEST, FROZEN_BEST = "plain", "frozen heads", "ADT at its best", "frozen heads at their best"
DIVERSE = Variant("ADT, diversity 10", changed({"diversity": 10.0}))
"""What is shown beside what ships."""
NAMES = {
    "base": "the base",
    PLAIN: "plain training, best of 6",
    FROZEN: "frozen heads, best of 6",
    "ADT": "**ADT as it ships**",
    DIVERSE.name: "ADT, `--adt_diversity 10`",
}
"""As the summary calls the runs."""
POOLED = {"fd": change_text, "pixel_fd": change_text, "recall": difference_text, "well_formed": difference_text}
"""Figures that are compared over several bases, and how."""
UNREAD = (
    *("begin", "memory", "offload", "profile", "backbone", "blocks", "disc_weights", "decoder", "decode_dtype"),
    *("flow_shift", "max_bad_turns", "pictures_every", "train_text_encoder", "cfg_scale"),
)
"""Options that the miniature has no use for: its whole fine-tune is the adversarial part, its networks are its own, and no
guidance is asked for."""


@dataclass(frozen=True)
class Plan:
    """How long and how often.

    Attributes:
        units: what every run costs, counted, in steps of plain training; the discriminator's warm-up is part of it.
        seeds: of the runs on the held-out split.
        samples: for each evaluation.
        base: number of the shipped denoiser that all runs start from.
        ablations: groups of `ABLATIONS` that are run too, on validation, beside ADT as it ships.
    """

    units: float = 700.0
    seeds: int = 6
    samples: int = 500
    base: int = 0
    ablations: tuple[str, ...] = ()
    quick: bool = False


class Bench:
    """One pass over the benchmark: measures what the store does not hold."""

    def __init__(self, plan: Plan, store: CellStore, bar: Bar) -> None:
        self.plan, self.store, self.bar = plan, store, bar

    @cached_property
    def validation(self) -> Study:
        """What settings are chosen on."""
        return open_study(Setting(self.plan.base, "validation", self.plan.samples, 5, STEPS, ()))

    @cached_property
    def heldout(self) -> dict[str, list[Study]]:
        """What figures are reported on: by grid, a study for each evaluation noise."""
        return {grid: [self._on_heldout(grid, noise) for noise in NOISES] for grid in HELDOUT}

    def _on_heldout(self, grid: str, noise: int) -> Study:
        detect = (DETECTED,) if (grid, noise) == (TRAILING, NOISES[0]) else ()
        return open_study(Setting(self.plan.base, "heldout", self.plan.samples, noise, STEPS, detect))

    def cell(self, variant: Variant, seed: int, studies: Sequence[Study], grid: str = LEADING) -> list[Cell]:
        """Tune once and score samples on a grid with every study; from the store where it is there."""
        split, plan = studies[0].setting.split if grid == LEADING else HELDOUT[grid], self.plan
        variant = replace(hurried(variant) if plan.quick else variant, grids=(grid,))
        settings = ([study.setting for study in studies], variant.name, what_is_read(variant), plan.units, seed)

        def measured() -> dict[str, Any]:
            steps = steps_for(variant.plan, plan.units) if variant.plan else 0
            tuned = studies[0].tune(variant.plan, Budget(steps=max(1, steps), cpu_time=True), seed)
            return {"cells": [asdict(study.score(variant, tuned, seed)) for study in studies]}

        self.bar.name(f"{split}: {variant.name}, seed {seed}")
        found, _ = self.store.get_or_run(f"{split}: {variant.name}, seed {seed}", settings, measured)
        self.bar.advance(plan.units)
        return [Cell.from_values(cell) for cell in found["cells"]]

    def trial(self, variant: Variant) -> Cell:
        """One run on validation."""
        return self.cell(variant, 0, [self.validation])[0]

    def best(self, trials: Sequence[Variant]) -> tuple[Variant, list[Cell]]:
        """Run all trials, and the best once more without an average of the weights; return the best of all."""
        cells = [self.trial(variant) for variant in trials]
        raw = without_average(_best(trials, cells))
        cells.append(self.trial(raw))
        return _best([*trials, raw], cells), cells

    def run(self) -> dict[str, Any]:
        """Measure everything, and return it as JSON values."""
        trials, finalists = {}, {"base": BASE}
        for name, variants in ((PLAIN, PLAIN_TRIALS), (FROZEN, FROZEN_TRIALS)):
            finalists[name], trials[name] = self.best(variants)
        finalists["ADT"] = ADT  # as it ships, chosen by nothing here
        finalists[DIVERSE.name] = DIVERSE
        tried: dict[str, dict[Variant, Cell]] = {BEST: {}, FROZEN_BEST: {}}
        for group in self.plan.ablations:
            first = finalists[FROZEN] if group == RIVALS else ADT
            cells = {variant: self.trial(variant) for variant in (first, *ABLATIONS[group])}
            trials[f"ablations: {group}"] = list(cells.values())
            if group != PARTS:
                tried[FROZEN_BEST if group == RIVALS else BEST] |= cells
        for name, of_all in tried.items():
            if of_all:
                finalists[name] = _best(list(of_all), list(of_all.values()))
        if self.plan.base:
            finalists[FROZEN_BEST] = chosen_for_frozen_heads()
        return {
            "plan": asdict(self.plan),
            "machine": report.machine(),
            "as it ships": dict(options_read(SHIPPED)),
            "finalists": {name: variant.name for name, variant in finalists.items()},
            "trials": {name: [asdict(cell) for cell in cells] for name, cells in trials.items()},
            **{HELDOUT[grid]: self.on_heldout(finalists, grid) for grid in HELDOUT},
            TRAINING: reference_scores(self.heldout[TRAILING][0]),
        }

    def on_heldout(self, finalists: Mapping[str, Variant], grid: str) -> dict[str, list[list[dict[str, Any]]]]:
        """Run all seeds of the finalists, ADT at its best on the grid that it was chosen on alone; JSON values by run."""
        results = {}
        for name, variant in finalists.items():
            if name != BEST or grid == LEADING:
                cells = [self.cell(variant, seed, self.heldout[grid], grid) for seed in range(seeds_of(variant, self.plan))]
                results[name] = [[asdict(cell) for cell in noises] for noises in cells]
        return results


def chosen_for_frozen_heads() -> Variant:
    """Return what was best for them from the first base, whose results are published: it was not tried from another."""
    chosen = published()["finalists"][FROZEN_BEST]
    return next(variant for variant in ABLATIONS[RIVALS] if variant.name == chosen)


def options_read(config: ADTConfig) -> tuple[tuple[str, Any], ...]:
    """Return the options that the miniature's figures depend on, by name."""
    return options_but(config, UNREAD)


def what_is_read(variant: Variant) -> tuple[Any, ...]:
    """Return everything about a fine-tune that its figures depend on: a new option that is not among it leaves them valid."""
    if variant.plan is None:
        return () if variant.grids == (LEADING,) else (variant.grids,)
    plan = [(spec.name, getattr(variant.plan, spec.name)) for spec in fields(variant.plan) if spec.name != "adt"]
    adt = options_read(variant.plan.adt) if variant.plan.adt else ()
    return tuple(plan), adt, variant.grids


def seeds_of(variant: Variant, plan: Plan) -> int:
    """Return how many seeds of a finalist are run on the held-out split."""
    return plan.seeds if variant.plan else 1


def count_runs(plan: Plan) -> int:
    """Count the runs of a benchmark from nothing: all trials, one more of each group, the base and the finalists."""
    groups = (PLAIN_TRIALS, FROZEN_TRIALS)
    trials = sum(len(group) + 1 for group in groups) + sum(1 + len(ABLATIONS[group]) for group in plan.ablations)
    reported = sum(seeds_of(variant, plan) for variant in (BASE, ADT, DIVERSE)) + plan.seeds * len(groups)
    at_their_best = bool({*plan.ablations} - {PARTS, RIVALS}) + len(HELDOUT) * (RIVALS in plan.ablations or plan.base > 0)
    return trials + len(HELDOUT) * reported + plan.seeds * at_their_best


def _best(variants: Sequence[Variant], cells: Sequence[Cell]) -> Variant:
    return min(zip(variants, cells, strict=True), key=lambda pair: merit(pair[1]))[0]


def merit(cell: Cell) -> float:
    """Return the mean logarithm of the distances at 5, 10 and 20 sampler steps; lower is better."""
    return statistics.fmean(log(cell.scores[LEADING][n].fd) for n in JUDGED)


def reference_scores(study: Study) -> dict[str, Any]:
    """Score training images as if they had been generated."""
    evaluator, train = study.evaluator, study.train

    def scored(indices: Tensor) -> dict[str, Any]:
        return evaluator.score(train.images[indices], train.labels[indices], detect=True).as_dict()

    return floor(train.labels, evaluator.labels, scored)


def values(results: dict[str, Any], run: str, figure: str, steps: int, grid: str = LEADING) -> list[float]:
    """Return a figure of a run on the held-out split: one value per seed, the mean over the noises that it was measured for."""
    scored = ([Cell.from_values(cell).scores[grid][steps] for cell in noises] for noises in results[HELDOUT[grid]][run])
    measured = ([value for scores in noises if (value := getattr(scores, figure)) is not None] for noises in scored)
    return [statistics.fmean(noises) for noises in measured if noises]


def paragraphs(results: dict[str, Any]) -> Iterator[str]:
    """The page `miniature.md`, from the JSON alone."""
    plan = results["plan"]
    name = name_of(plan["base"])
    yield "# The miniature, from the plateau" + (f": base {plan['base']}" if plan["base"] else "")
    option = f" --base {plan['base']}" if plan["base"] else ""
    yield (
        f"Written by `python -m benchmarks.miniature{option}` in `tests/` from [{name}.json]({name}.json). Every run cost as "
        f"much as {plan['units']:g} steps of plain training, counted in operations, warm-up included. Figures are means over "
        f"{plan['seeds']} seeds (each the mean over {len(NOISES)} evaluation noises of {plan['samples']} samples), with their "
        "95 % bootstrap interval; held-out split, which has chosen nothing. DDIM. Training images are scored as if they were "
        "samples, as many of each digit, and show what a perfect model of the training data would come to."
    )
    for (grid, name), steps in product(GRIDS.items(), STEPS):
        yield f"## {steps} sampler steps, {name} grid"
        shown = [figure for figure in FIGURES if values(results, "ADT", figure, steps, grid)]
        rows = [
            [run, *(interval_text(values(results, run, figure, steps, grid)) for figure in shown)]
            for run in results[HELDOUT[grid]]
        ]
        rows.append([TRAINING, *(f"{results[TRAINING][figure]:.3g}" for figure in shown)])
        yield report.table(["run", *shown], rows)
    yield "## ADT against the others\n\nPaired over seeds: change of the Fréchet distance, and the exact sign-flip test's p."
    yield from (
        report.table([f"{name} grid", *(f"{n} steps" for n in STEPS)], list(changes(results, grid)))
        for grid, name in GRIDS.items()
    )
    yield "## Trials\n\nOne run each on the validation split; the best of each group went on."
    yield from (trials_table(results, name) for name in results["trials"])


def trials_table(results: dict[str, Any], group: str) -> str:
    """Return the table of a group of trials."""
    head = [group, *(f"FD@{n}" for n in STEPS), *(f"well-formed@{n}" for n in JUDGED), "recall@10", "pixel FD@10", "steps"]
    return report.table(head, [trial_row(Cell.from_values(cell)) for cell in results["trials"][group]])


def summary(results: dict[str, Any], grid: str) -> str:
    """Return the table of a grid that README.md and docs/benchmarks.md show: means over the seeds, on the held-out split."""
    head = [f"{GRIDS[grid]} grid", *(f"FD@{n}" for n in JUDGED), *(f"well-formed@{n}" for n in JUDGED)]
    head += ["recall@10", "pixel FD@10"]
    columns = [*(("fd", n, ".2f") for n in JUDGED), *(("well_formed", n, ".3f") for n in JUDGED)]
    columns += [("recall", 10, ".3f"), ("pixel_fd", 10, ".1f")]
    rows = [
        [
            called(results, run),
            *(format(statistics.fmean(values(results, run, name, n, grid)), form) for name, n, form in columns),
        ]
        for run in results[HELDOUT[grid]]
    ]
    real = [format(results[TRAINING][name], form) for name, _, form in columns]
    return report.table(head, [*rows, [f"{TRAINING}, for comparison", *real]])


def called(results: dict[str, Any], run: str) -> str:
    """How the summary calls a run; what is at its best with the settings that it has."""
    settings: str = results["finalists"][run].removeprefix(f"{FROZEN}, ")
    return NAMES.get(run, f"{run}: {settings}")


def trial_row(cell: Cell) -> list[str]:
    """One trial's figures."""
    scores = cell.scores[LEADING]
    return [
        cell.run,
        *(f"{scores[n].fd:.2f}" for n in STEPS),
        *(f"{scores[n].well_formed:.3f}" for n in JUDGED),
        f"{scores[10].recall:.3f}",
        f"{scores[10].pixel_fd:.2f}",
        str(cell.steps),
    ]


def changes(results: dict[str, Any], grid: str) -> Iterator[list[str]]:
    """Rows: the distance of ADT, as it ships and at its best, against each other run's."""
    for run, other in product(("ADT", DIVERSE.name, BEST), ("base", PLAIN, FROZEN, FROZEN_BEST)):
        if not {run, other} <= results[HELDOUT[grid]].keys():
            continue
        row = [f"{run} against {other}"]
        for steps in STEPS:
            row.append(change_text(*side_by_side([results], run, other, "fd", steps, grid)))
        yield row


def pooled(found: Sequence[dict[str, Any]], grid: str, run: str = "ADT") -> str:
    """Return a grid's table of docs/benchmarks.md of several bases: a run against its rivals, paired over all seeds."""
    rows = []
    for other, (figure, text) in product((PLAIN, FROZEN, FROZEN_BEST), POOLED.items()):
        row = [f"{figure}, against {NAMES.get(other, other).partition(',')[0]}"]
        for steps in STEPS:
            row.append(text(*side_by_side(found, run, other, figure, steps, grid)))
        rows.append(row)
    seeds = sum(len(results[HELDOUT[grid]][run]) for results in found)
    return report.table([f"{run}, {GRIDS[grid]} grid, {seeds} pairs", *(f"{steps} steps" for steps in STEPS)], rows)


def side_by_side(
    found: Sequence[dict[str, Any]], run: str, other: str, figure: str, steps: int, grid: str
) -> tuple[list[float], list[float]]:
    """Return a figure of two runs by seed over all bases, as far as both were run; the untuned base stands beside each."""
    pairs = []
    for results in found:
        ours, theirs = (values(results, name, figure, steps, grid) for name in (run, other))
        pairs += zip(ours, repeat(theirs[0]) if len(theirs) == 1 else theirs, strict=False)
    left, right = map(list, zip(*pairs, strict=True))
    return left, right


def draw_curves(results: dict[str, Any], path: Path) -> None:
    """Distance and well-formed share against the number of sampler steps, a band over seeds; a row for each grid."""
    labels = {"fd": "Fréchet distance, lower is better", "well_formed": "well-formed share, higher is better"}
    rows = []
    for grid, name in GRIDS.items():
        panels = {}
        for figure, label in labels.items():
            lines = {}
            for run in results[HELDOUT[grid]]:
                by_seed = zip(*(values(results, run, figure, steps, grid) for steps in STEPS), strict=True)
                lines[run] = [list(zip(map(float, STEPS), seed, strict=True)) for seed in by_seed]
            panels[(label, f"sampler steps, {name} grid")] = lines
        rows.append(panels)
    pictures.curves(path, *rows)


def name_of(base: int) -> str:
    """How the files of a base's results are called."""
    return "miniature" if base == 0 else f"miniature_base{base}"


def published(base: int = 0) -> dict[str, Any]:
    """Read what has been found from a base."""
    found: dict[str, Any] = json.loads((DOCUMENTS / f"{name_of(base)}.json").read_text(encoding="utf-8"))
    return found


def write(results: dict[str, Any], folder: Path) -> None:
    """Write `miniature.json`, `miniature.md` and `miniature.png`; those of another base have its number in their names."""
    name = name_of(results["plan"]["base"])
    write_atomically(folder / f"{name}.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / f"{name}.md", "\n\n".join(paragraphs(results)) + "\n")
    draw_curves(results, folder / f"{name}.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark with these arguments, or with the command line's.

    Raises:
        SystemExit: 2 for wrong options, 130 after Ctrl-C, 1 with one line where an extra is not installed.
    """
    given = _parser().parse_args(argv)
    first = given.base == 0
    seeds = given.seeds or (Plan.seeds if first else OTHER_SEEDS)
    ablations = given.ablations if given.ablations is not None else ABLATIONS if first and not given.quick else ()
    plan = Plan(given.units, seeds, base=given.base, ablations=tuple(ablations))
    if given.quick:
        plan = replace(plan, units=20.0, seeds=2, samples=40, quick=True)
    with short_endings(given.out), Bar(plan.units * count_runs(plan)) as bar:
        write(Bench(plan, CellStore(given.out / "cells.json", f"base {plan.base}"), bar).run(), given.out)
    print(f"Written: {name_of(plan.base)}.md, .json and .png in {given.out.resolve()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.miniature", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--units", type=duration, default=Plan.units, help="cost of every run, in plain steps (default: 700)")
    parser.add_argument(
        "--seeds", type=positive, help=f"runs of each finalist (default: {Plan.seeds}; of another base {OTHER_SEEDS})"
    )
    parser.add_argument("--base", type=int, default=0, help="number of the shipped denoiser (default: 0)")
    parser.add_argument(
        "--ablations", nargs="*", choices=ABLATIONS, help="ablations to run, too (default: all; of another base none)"
    )
    parser.add_argument("--out", type=Path, default=DOCUMENTS, help="folder (default: docs/benchmarks)")
    add_shared_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
