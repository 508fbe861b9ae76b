"""`python -m benchmarks.curve BED`: distance against cost, from the plateau, on the held-out split; resumable.

Plain training, frozen heads, ADT as it ships, and ADT with the defaults that it had before, each for several budgets. On the
miniature a budget is counted in plain steps; on the small Stable Diffusion it is what the run took in processor time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adt_plugin.demo import pictures, report
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.cli import positive
from adt_plugin.demo.progress import Bar
from adt_plugin.demo.study import Setting, open_study
from adt_plugin.demo.variants import ADT, BASE, Variant, changed
from benchmarks import DOCUMENTS, miniature, small_sd
from benchmarks.ablations import FROZEN_TRIALS, PLAIN_TRIALS, without_average
from benchmarks.host_training import Recipe, host_folder
from benchmarks.store import CellStore, run_of, seed_of

Point = tuple[float, dict[str, tuple[float, float]]]
"""What a run cost, and at every point of sampling its Fréchet distance and its share of well-formed digits."""
Groups = Mapping[str, Mapping[str, Any]]
"""Everything that the store holds: group -> label -> result."""

FORMER = {
    "weight": 1.0, "max_grad_ratio": 3.0, "start_min": 0.0, "every": 2, "warmup": 100,
    "disc_loss": "hinge", "disc_penalty": 0.0, "disc_steps": 1, "disc_lr": 5e-4,
}  # fmt: skip
"""The defaults before heads learnt from earlier turns, as far as both beds read them."""
AS_BEFORE = "ADT, former defaults"

# The miniature

BUDGETS = (350.0, 700.0, 1400.0)
"""In steps of plain training."""
NOISE = miniature.NOISES[0]


def variants() -> dict[str, Variant]:
    """Return run -> how it is tuned: the rivals that were best on validation, and ADT."""
    chosen = miniature.published()["finalists"]
    trials = (*PLAIN_TRIALS, *FROZEN_TRIALS)
    by_name = {variant.name: variant for trial in trials for variant in (trial, without_average(trial))}
    rivals = {name: by_name[chosen[name]] for name in (miniature.PLAIN, miniature.FROZEN)}
    return rivals | {AS_BEFORE: Variant(AS_BEFORE, changed(FORMER)), "ADT": ADT}


def run_miniature(out: Path, seeds: int) -> None:
    """Measure what neither the store nor the miniature's benchmark holds."""
    study = open_study(Setting(0, "heldout", miniature.Plan.samples, NOISE, miniature.STEPS, ()))
    found, tuned = miniature.published(), variants()
    known = {(found["plan"]["units"], run) for run in found["heldout"]}
    wanted = [(units, run) for units in BUDGETS for run in tuned if (units, run) not in known]
    with Bar(seeds * sum(units for units, _ in wanted)) as bar:
        for units, run in wanted:
            store = CellStore(out / "curve.json", f"miniature, {units:g} steps")
            bench = miniature.Bench(miniature.Plan(units=units), store, bar)
            for seed in range(seeds):
                bench.cell(tuned[run], seed, [study])


def miniature_points(groups: Groups) -> Iterator[tuple[str, Point]]:
    """Yield run and point of every cell of the miniature's, and of its benchmark's with the same seeds."""
    found = miniature.published()
    names = {variant.name: run for run, variant in variants().items()}
    seeds = set()
    for units in BUDGETS:
        for label, result in groups.get(f"miniature, {units:g} steps", {}).items():
            seeds.add(seed_of(label))
            yield names[run_of(label)], (units, of_cell(result["cells"][0]))
    for run in (BASE.name, miniature.PLAIN, miniature.FROZEN, "ADT"):
        for seed, noises in enumerate(found["heldout"][run]):
            if seed in seeds:
                yield run, (0.0 if run == BASE.name else found["plan"]["units"], of_cell(noises[0]))


def of_cell(cell: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the figures of a cell of the miniature's."""
    scores = Cell.from_values(cell).scores["ddim"]
    return {f"{steps} steps": (scores[steps].fd, scores[steps].well_formed) for steps in miniature.STEPS}


# The small Stable Diffusion


def former_options() -> tuple[str, ...]:
    """The former defaults as the host's command line has them; turns then kept the run's rate and walked without guidance."""
    given = FORMER | {"cfg_scale": 1, "lr": 0}
    return (*small_sd.HEADS, *(str(part) for name, value in given.items() for part in (f"--adt_{name}", value)))


FROZEN = small_sd.FROZEN_TRIALS[0]
PLAIN = replace(small_sd.PLAIN_TRIALS[-1], steps=small_sd.PLAIN_STEPS)
LONG: tuple[tuple[str, Recipe], ...] = (
    (miniature.PLAIN, replace(PLAIN, steps=2 * PLAIN.steps)),
    *((miniature.FROZEN, replace(FROZEN, steps=steps)) for steps in (80, 320)),
    *(("ADT", replace(small_sd.ADT, steps=steps)) for steps in (80, 320)),
    *((AS_BEFORE, Recipe(AS_BEFORE, steps, small_sd.LR, former_options())) for steps in (200, 400)),
)
"""Run, and how its LoRA is trained; each once, beside what the small Stable Diffusion's benchmark holds."""
KNOWN = {"plateau": BASE.name, PLAIN.name: miniature.PLAIN, FROZEN.name: miniature.FROZEN, small_sd.ADT.name: "ADT"}
"""What that benchmark calls them."""
SEED = 1


def labelled(recipe: Recipe) -> Recipe:
    """The same with its number of steps in its name, by which it is stored."""
    return replace(recipe, name=f"{recipe.name}, {recipe.steps} steps")


def run_small_sd(out: Path, seeds: int) -> None:
    """Measure what the store does not hold. Raises SystemExit where no host is found."""
    torch.set_num_threads(1)
    bench = small_sd.Bench(host_folder(None), CellStore(out / "curve.json", "small SD"), out / "curve_work")
    for seed in range(SEED, SEED + seeds):
        for _, recipe in LONG:
            bench.cell(labelled(recipe), seed, "heldout")


def small_sd_points(groups: Groups) -> Iterator[tuple[str, Point]]:
    """Yield run and point of every cell of the small Stable Diffusion's, and of its benchmark's with the same seeds."""
    cells = groups.get("small SD", {})
    names, seeds = {labelled(recipe).name: run for run, recipe in LONG}, {seed_of(label) for label in cells}
    for label, result in small_sd.published().items():
        if label.startswith("heldout: ") and run_of(label) in KNOWN and seed_of(label) in seeds:
            yield KNOWN[run_of(label)], point_of(result)
    for label, result in cells.items():
        yield names[run_of(label)], point_of(result)


def point_of(result: dict[str, Any]) -> Point:
    """Return a LoRA's point."""
    scores = result["scores"]
    return float(result["seconds"]), {name: (scores[name]["fd"], scores[name]["well_formed"]) for name in small_sd.SHOWN}


# Both


@dataclass(frozen=True)
class Bed:
    """What is measured on a bed, and how its pages call it.

    Attributes:
        run: measures what the store in a folder does not hold, with so many seeds.
        points: of everything that the store holds.
        cost: name of the unit.
        shown: the point of sampling that the picture shows.
    """

    run: Callable[[Path, int], None]
    points: Callable[[Groups], Iterator[tuple[str, Point]]]
    cost: str
    seeds: int
    shown: str


BEDS = {
    "miniature": Bed(run_miniature, miniature_points, "cost, in plain steps", 2, "10 steps"),
    "small_sd": Bed(run_small_sd, small_sd_points, "processor time, s", 1, "3 @ 10"),
}


def averaged(bed: Bed, groups: Groups) -> dict[str, list[list[Point]]]:
    """Return run -> the points of all its seeds, those of about one cost together, the cheapest first."""
    found: dict[str, list[list[Point]]] = {}
    for run, point in sorted(bed.points(groups), key=lambda item: item[1][0]):
        budgets = found.setdefault(run, [])
        if not budgets or point[0] > 1.3 * budgets[-1][0][0]:  # budgets lie further apart, seeds nearer together
            budgets.append([])
        budgets[-1].append(point)
    return found


def table(bed: Bed, groups: Groups) -> str:
    """Return the bed's table of docs/benchmarks.md: means over the seeds."""
    rows, names = [], []
    for run, budgets in averaged(bed, groups).items():
        for points in budgets:
            names = list(points[0][1])
            means = (map(statistics.fmean, zip(*(point[1][name] for point in points), strict=True)) for name in names)
            texts = ["{:.2f} ({:.2f})".format(*pair) for pair in means]
            rows.append([run, f"{statistics.fmean(point[0] for point in points):.0f}", str(len(points)), *texts])
    return report.table(["FD (well-formed share)", bed.cost, "seeds", *names], rows)


def draw(groups: Groups, path: Path) -> None:
    """Distance against cost, a panel for each bed; every line begins at the plateau."""
    panels = {}
    for bed in BEDS.values():
        found = averaged(bed, groups)
        if len(found) < 2:
            continue
        (start,) = found.pop(BASE.name)
        begin = (0.0, statistics.fmean(point[1][bed.shown][0] for point in start))
        panels[(f"Fréchet distance, {bed.shown}", bed.cost)] = {
            run: [
                [begin, *((statistics.fmean(p[0] for p in points), points[seed][1][bed.shown][0]) for points in budgets)]
                for seed in range(min(map(len, budgets)))
            ]
            for run, budgets in found.items()
        }
    pictures.curves(path, panels)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's.

    Raises SystemExit where no host is found.
    """
    parser = argparse.ArgumentParser("python -m benchmarks.curve", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("beds", nargs="+", choices=BEDS)
    parser.add_argument("--seeds", type=positive, help="runs of each point (default: 2 on the miniature, 1 on the small SD)")
    parser.add_argument("--out", type=Path, default=DOCUMENTS, help="folder of curve.json (default: docs/benchmarks)")
    given = parser.parse_args(argv)
    for name in given.beds:
        BEDS[name].run(given.out, given.seeds or BEDS[name].seeds)
    groups = CellStore(given.out / "curve.json").results()
    draw(groups, given.out / "curve.png")
    print("\n\n".join(table(bed, groups) for bed in BEDS.values()))


if __name__ == "__main__":
    main()
