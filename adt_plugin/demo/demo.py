"""`python -m adt_plugin demo`: the base, plain training continued and ADT, for the same time, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo import pictures, report
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.diffusion import GRIDS, LEADING, TRAILING, sample_on
from adt_plugin.demo.finetune import Budget, tunable_copy
from adt_plugin.demo.progress import Bar
from adt_plugin.demo.study import Setting, Study, Tuned, open_study, sampling_work, scoring_work, tuning_work
from adt_plugin.demo.variants import ADT, BASE, PLAIN, Variant

SETTING = Setting(samples=600, sampler_steps=(3, 5, 10, 20), detect=())
CURVE_POINTS, CURVE_STEPS = 4, 5
PICTURED, PICTURE_SAMPLES = ((LEADING, 5), (TRAILING, 5), (TRAILING, 10)), 12


@dataclass(frozen=True)
class DemoOptions:
    """What the command line sets.

    Attributes:
        seconds: of tuning, for every variant alike.
        curve_samples: drawn for each point of the curve over time.
        variants: what is compared, the base first.
    """

    out: Path
    seeds: int = 1
    seconds: float = 60.0
    curve_samples: int = 500
    variants: tuple[Variant, ...] = tuple(replace(variant, grids=tuple(GRIDS)) for variant in (BASE, PLAIN, ADT))
    setting: Setting = SETTING


@dataclass
class DemoResults:
    """What has been measured so far; written after every run, so that an interruption loses one run at most.

    Attributes:
        cells: one per run.
        curves: by variant, one curve per seed: seconds of tuning, distance at 10 steps.
        tuned: the first seed's denoisers by variant, for the sample grids.
    """

    options: DemoOptions
    cells: list[Cell] = field(default_factory=list)
    curves: dict[str, list[list[tuple[float, float]]]] = field(default_factory=dict)
    tuned: dict[str, Tuned] = field(default_factory=dict)

    def add(self, cell: Cell) -> None:
        """Take in a finished run; write table and JSON."""
        self.cells.append(cell)
        write_atomically(self.options.out / "results.md", self.table() + "\n")
        report.write_json(self.options.out / "results.json", self.options.setting, {"demo": self.cells})

    def table(self) -> str:
        """Return the comparison so far in Markdown, a table for each grid."""
        groups = report.grouped(self.cells)
        return "\n\n".join(report.comparison(groups, grid) for grid in self.cells[0].scores)


def run_demo(results: DemoResults) -> None:
    """Tune and compare; writes `results.md`, `results.json`, `samples.png` and `curves.png` into `options.out`."""
    options = results.options
    with Bar(demo_work(options)) as bar:
        bar.name("loading")
        study = open_study(options.setting, bar.advance)
        for seed in range(options.seeds):
            for variant in options.variants if seed == 0 else options.variants[1:]:  # one base for all seeds
                bar.name(f"{variant.name}, seed {seed}" if variant.plan else variant.name)
                run_variant(study, variant, seed, results)
        bar.name("pictures")
        draw(study, results)


def demo_work(options: DemoOptions) -> float:
    """Estimate the work of the whole demo, in diffusion steps."""

    def run(variant: Variant) -> float:
        points = 1 if variant.plan is None else CURVE_POINTS
        curve = points * sampling_work(options.curve_samples, [CURVE_STEPS])
        return tuning_work(variant.plan, Budget(seconds=options.seconds)) + scoring_work(options.setting, variant) + curve

    return run(options.variants[0]) + options.seeds * sum(map(run, options.variants[1:]))


def run_variant(study: Study, variant: Variant, seed: int, results: DemoResults) -> None:
    """Tune one variant, score it and its way there."""
    waypoints: list[Tuned] = []

    def look(tuned: Tuned, progress: float) -> None:
        while progress >= (len(waypoints) + 1) / CURVE_POINTS:  # a long step may pass several
            waypoints.append(replace(tuned, unet=tunable_copy(tuned.unet)))

    tuned = study.tune(variant.plan, Budget(seconds=results.options.seconds), seed, look)
    results.add(study.score(variant, tuned, seed))
    results.tuned.setdefault(variant.name, tuned)
    if variant.plan is None:
        waypoints = [tuned]
    else:  # a warm-up may take all the time, so that no step was looked at
        waypoints = waypoints[: CURVE_POINTS - 1] + [tuned] * max(1, CURVE_POINTS - len(waypoints))
    curve = [(point.seconds, _curve_distance(study, point, results.options.curve_samples)) for point in waypoints]
    results.curves.setdefault(variant.name, []).append(curve)


def _curve_distance(study: Study, tuned: Tuned, samples: int) -> float:
    scores = study.evaluator.shortened(samples).evaluate(tuned.unet, steps=[CURVE_STEPS])
    study.progress(sampling_work(samples, [CURVE_STEPS]))
    return scores[LEADING][CURVE_STEPS].fd


def draw(study: Study, results: DemoResults) -> None:
    """Draw both pictures: the first samples of every run from the same noise, and the curves."""
    out = results.options.out
    noise, labels = study.evaluator.noise[:PICTURE_SAMPLES], study.evaluator.labels[:PICTURE_SAMPLES]
    panels = [
        (
            f"{steps} sampler steps, {GRIDS[grid]} grid",
            {name: sample_on(grid, tuned.unet, noise, labels, steps) for name, tuned in results.tuned.items()},
        )
        for grid, steps in PICTURED
    ]
    pictures.sample_rows(out / "samples.png", panels)
    start = results.curves[BASE.name][0][0]
    over_time = {name: [[start, *curve] for curve in seeds] for name, seeds in results.curves.items() if name != BASE.name}
    pictures.curves(
        out / "curves.png",
        {
            ("Fréchet distance, lower is better", f"sampler steps, {GRIDS[LEADING]} grid"): report.by_sampler_steps(
                results.cells
            ),
            (f"Fréchet distance at {CURVE_STEPS} sampler steps", "seconds of tuning"): over_time,
        },
    )
