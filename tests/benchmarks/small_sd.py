"""`python -m benchmarks.small_sd`: the last mile of a LoRA by the real `train_network.py` on the small Stable Diffusion.

The base knows digits in one style, and a LoRA has learnt another, to its plateau. From there three ways to go on are
compared at equal processor time: plain training, frozen heads, and `--adt` as it ships. Rivals are tuned on the validation
split; the held-out split has chosen nothing. Resumable.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from math import log
from pathlib import Path
from typing import Any

import torch

from adt_plugin.core.forecast import as_sampled
from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo import report
from adt_plugin.demo.cli import positive
from adt_plugin.options import add_adt_arguments, from_namespace
from benchmarks import DOCUMENTS
from benchmarks.floor import TRAINING
from benchmarks.host_training import (
    BATCH,
    FLAGS,
    FULL,
    IMAGES,
    OPTIONS,
    PLATEAU,
    POINTS,
    STYLE,
    Recipe,
    add_host_argument,
    host_folder,
    point_name,
    scored,
    trained,
    training_figures,
)
from benchmarks.intervals import change_text, interval_text
from benchmarks.store import CellStore, by_run, only_group, options_but

TO_THE_PLATEAU = (Recipe("first", 2000, "3e-3"), Recipe("second", 4000, "3e-3"))
"""One after the other, each with its own cosine."""

TURNS, PLAIN_STEPS = 160, 1350
"""Steps with a turn each, 40 of them the discriminator's warm-up, and the plain steps of the same processor time."""

LR = "3e-3"
HEADS = ("--adt", "--adt_begin", "0", "--adt_disc_width", "32")  # heads shrink with the backbone
NO_LEARNING = ("--adt_disc_lr", "0", "--adt_disc_steps", "1", "--adt_disc_penalty", "0", "--adt_warmup", "8")

BEFORE, PLAIN, FROZEN = "plateau", "plain training", "frozen heads"
PLAIN_TRIALS = tuple(Recipe(f"{PLAIN}, lr {lr}", 1200, lr) for lr in ("1e-4", "3e-4", "1e-3", "3e-3"))
FROZEN_TRIALS = tuple(
    Recipe(f"{FROZEN}, weight {weight}", TURNS, LR, (*HEADS, *NO_LEARNING, "--adt_weight", weight)) for weight in ("5", "10")
)
ADT = Recipe("ADT as it ships", TURNS, LR, HEADS)
BY_WEIGHT = ("--adt_grad_mask", "weighted")
ONE_STEP = Recipe("ADT, one head step a turn", TURNS, LR, (*HEADS, "--adt_disc_steps", "1"))
QUARTER = Recipe("ADT, heads at a quarter of the rate", TURNS, LR, (*HEADS, "--adt_disc_lr", "5e-4"))
MID_START = Recipe("ADT, starts from .6 of the path", TURNS, LR, (*HEADS, "--adt_start_min", "0.6"))
LATE_START = Recipe("ADT, starts from .8 of the path", TURNS, LR, (*HEADS, "--adt_start_min", "0.8"))
DIVERSE = Recipe("ADT, diversity 10", TURNS, LR, (*HEADS, "--adt_diversity", "10"))
GUIDED = tuple(Recipe(f"ADT, turns at guidance {scale}", TURNS, LR, (*HEADS, "--adt_cfg_scale", scale)) for scale in ("1", "7"))
"""ADT as it ships walks at 3."""


def with_images(steps: int, lr: str, batch: int, accumulated: int = 1) -> Recipe:
    """ADT as it ships with another number of images a step."""
    times, plural = f"{accumulated} x " if accumulated > 1 else "", "s" if batch > 1 else ""
    images = f"{times}{batch} image{plural}"
    return Recipe(f"ADT, {images}, lr {lr}, {steps} steps", steps, lr, HEADS, batch=batch, accumulated=accumulated)


SMALL_BATCHES = (
    with_images(TURNS, "1.5e-3", 4),
    with_images(TURNS, "7.5e-4", 1),
    with_images(4 * TURNS, "7.5e-4", 1),
    with_images(TURNS, LR, 4),
)
"""Fewer images a step, at rates that fall with the square root of their number, and at the benchmark's own."""
SMALL_BATCHES_ONCE = (
    with_images(TURNS, LR, 1, accumulated=4),
    with_images(TURNS, LR, 1),
    with_images(4 * TURNS, LR, 1),
)
"""The same, with the first seed alone."""
WHOLE_PATH = Recipe("ADT, always the whole path", TURNS, LR, (*HEADS, "--adt_start_min", "1"))
LEVERS = (
    ADT,
    Recipe("ADT, warm-up of 8 turns", TURNS, LR, (*HEADS, "--adt_warmup", "8")),
    QUARTER,
    ONE_STEP,
    Recipe("ADT, steps drawn by weight", TURNS, LR, (*HEADS, *BY_WEIGHT)),
    Recipe(f"{ONE_STEP.name}, steps drawn by weight", TURNS, LR, (*ONE_STEP.adt, *BY_WEIGHT)),
    Recipe(f"{FROZEN_TRIALS[0].name}, steps drawn by weight", TURNS, LR, (*FROZEN_TRIALS[0].adt, *BY_WEIGHT)),
    MID_START,
    LATE_START,
    WHOLE_PATH,
    DIVERSE,
)
"""ADT as it ships, and with other values of some settings; frozen heads, too."""
TWICE = (ADT, QUARTER, ONE_STEP, LATE_START, WHOLE_PATH, DIVERSE, FROZEN_TRIALS[0])
"""What a second seed is run of, to tell luck from difference."""
CANDIDATES = tuple(recipe for recipe in TWICE if recipe not in FROZEN_TRIALS)
"""What ADT at its best is chosen from."""
CHOSEN_BY = (0, 1)
"""Seeds on validation that choose it."""
BESIDE_SEEDS = (1, 2)
"""Of what is run beside the comparison."""
JUDGED = ((2.0, 10), (3.0, 5), (3.0, 10))
UNREAD = ("offload", "profile", "backbone", "max_bad_turns", "pictures_every", "flow_shift", "disc_weights", "decoder")
"""Options that change no figure of these runs."""
TITLE = "The small Stable Diffusion, a LoRA's last mile through the real host"
SHOWN = ("1 @ 10", "2 @ 10", "3 @ 5", "3 @ 10", "7 @ 10")
"""Points of the tables in docs/benchmarks.md."""
FIGURES = ("fd", "kid", "pixel_fd", "precision", "recall", "well_formed", "novelty")


class Bench:
    """One pass: measures what the store does not hold.

    Args:
        host: sd-scripts' work tree.
        store: of what was measured.
        work: folder of the LoRAs and pictures.
        begin: the LoRA that training goes on from; None begins one.
    """

    def __init__(self, host: Path, store: CellStore, work: Path, begin: Path | None = PLATEAU, samples: int = 500) -> None:
        self.host, self.store, self.work, self.begin, self.samples = host, store, work, begin, samples

    def cell(self, recipe: Recipe, seed: int, split: str) -> dict[str, Any]:
        """Train one LoRA and score it."""
        file = self.file_of(recipe, seed)

        def measured() -> dict[str, Any]:
            seconds = trained(recipe, seed, self.begin, self.host, file)
            return {"seconds": round(seconds), "scores": scored(file, split, 108 + seed, self.samples, file.with_suffix(""))}

        return self.stored(f"{split}: {recipe.name}, seed {seed}", self.settings(recipe, seed), measured)

    def file_of(self, recipe: Recipe, seed: int) -> Path:
        """Where a recipe's LoRA lies."""
        return self.work / f"{recipe.name.replace(' ', '_').replace(',', '')}-{seed}.safetensors"

    def settings(self, recipe: Recipe, seed: int) -> tuple[Any, ...]:
        """What a recipe's figures depend on, beside what all share."""
        full = (FULL,) if recipe.full else ()
        batch = (recipe.batch,) if recipe.batch != BATCH else ()
        accumulated = (("accumulated", recipe.accumulated),) if recipe.accumulated > 1 else ()
        return recipe.steps, recipe.lr, options_read(recipe), seed, *full, *batch, *accumulated

    def lora(self, recipe: Recipe, seed: int) -> Path:
        """Train one LoRA unless its file is there; return the file."""
        file = self.file_of(recipe, seed)
        if not file.is_file():
            trained(recipe, seed, self.begin, self.host, file)
        return file

    def plateau(self, seed: int, split: str) -> dict[str, Any]:
        """Score the LoRA that all begin from, on the noise of this seed."""
        file = self.work / f"plateau-{seed}"
        run = lambda: {"seconds": 0, "scores": scored(PLATEAU, split, 108 + seed, self.samples, file)}  # noqa: E731
        return self.stored(f"{split}: {BEFORE}, seed {seed}", seed, run)

    def floor(self, split: str) -> dict[str, Any]:
        """Score the images that the LoRA learnt from."""
        run = lambda: {"seconds": 0, "scores": {TRAINING: training_figures(split, self.samples)}}  # noqa: E731
        return self.stored(floor_label(split), (), run)

    def stored(self, label: str, settings: Any, measured: Any) -> dict[str, Any]:
        """Look a measurement up, or measure; say what came."""
        shared = (sorted(OPTIONS.items()), FLAGS, STYLE, IMAGES, self.samples, POINTS)
        found, fresh = self.store.get_or_run(label, (shared, settings), measured)
        if fresh:
            print(label, found["seconds"], "s", {k: round(v["fd"], 2) for k, v in found["scores"].items()}, flush=True)
        return found

    def best(self, trials: Sequence[Recipe]) -> Recipe:
        """Run each trial once on validation; return the best."""
        return min(trials, key=lambda recipe: merit(self.cell(recipe, 0, "validation")))

    def at_its_best(self) -> Recipe:
        """Run what it is chosen from where the store has no result; return the best."""
        for recipe, seed in product(CANDIDATES, CHOSEN_BY):
            self.cell(recipe, seed, "validation")
        return best_of(self.store.results()[self.store.group])

    def finalists(self) -> list[Recipe]:
        """Return the rivals that were best on validation, which are tried where the store has no trials, and ADT."""
        return [replace(self.best(PLAIN_TRIALS), steps=PLAIN_STEPS), self.best(FROZEN_TRIALS), ADT]

    def run(self, seeds: int) -> None:
        """Measure everything on the held-out split."""
        finalists = self.finalists()
        for seed in range(1, seeds + 1):
            self.plateau(seed, "heldout")
            for recipe in finalists:
                self.cell(recipe, seed, "heldout")

    def run_levers(self) -> None:
        """Measure the levers on validation, some with a second seed."""
        for recipe in LEVERS:
            self.cell(recipe, 0, "validation")
        for recipe in TWICE:
            self.cell(recipe, 1, "validation")

    def run_at_its_best(self, seeds: int) -> None:
        """Measure the best settings on the held-out split."""
        best = self.at_its_best()
        for seed in range(1, seeds + 1):
            self.cell(best, seed, "heldout")

    def run_beside(self) -> None:
        """Measure turns at other guidance scales and with fewer images a step, on the held-out split."""
        for seed, recipe in product(BESIDE_SEEDS, SMALL_BATCHES):
            self.cell(recipe, seed, "heldout")
        for recipe in (*SMALL_BATCHES_ONCE, *GUIDED):
            self.cell(recipe, BESIDE_SEEDS[0], "heldout")


def floor_label(split: str) -> str:
    """Under which the training images' figures are stored."""
    return f"{split}: {TRAINING}, seed 0"


def floor_of(results: dict[str, Any]) -> dict[str, float]:
    """Return the training images' figures on the held-out split from a store's label -> result."""
    found: dict[str, float] = results[floor_label("heldout")]["scores"][TRAINING]
    return found


def store_of(host: Path, results: Path) -> CellStore:
    """Return the store of what a host has trained, in a JSON file."""
    return CellStore(results, f"LoRA, {host.name}")


def options_read(recipe: Recipe) -> tuple[tuple[str, Any], ...]:
    """Return the plugin's options that a recipe's figures depend on, defaults included; none for plain training."""
    if not recipe.adt:
        return ()
    parser = argparse.ArgumentParser()
    add_adt_arguments(parser)
    return options_but(as_sampled(from_namespace(parser.parse_args(recipe.adt)), "sd15"), UNREAD)


def merit(cell: dict[str, Any]) -> float:
    """Return the mean logarithm of the distances where one would sample: guidance 2 and 3; lower is better."""
    return statistics.fmean(log(cell["scores"][point_name(*point)]["fd"]) for point in JUDGED)


def values(runs: dict[str, Any], run: str, point: str, figure: str) -> list[float]:
    """Return a figure of a run: one value per seed."""
    return [cell["scores"][point][figure] for cell in runs[run]]


def paragraphs(runs: dict[str, Any], floor: dict[str, float]) -> Iterator[str]:
    """The page `small_sd.md`.

    Args:
        floor: the training images' figures, the same at every point.
    """
    seeds, names = len(runs[ADT.name]), [point_name(*point) for point in POINTS]
    yield f"# {TITLE}"
    yield (
        f"Written by `python -m benchmarks.small_sd` in `tests/`. Held-out split; means over "
        f"{seeds} seeds (training and evaluation noise) with their 95 % bootstrap interval. "
        "DDIM, leading. `3 @ 10`: guidance 3, 10 steps. Training images are scored as if they were samples, as many of each "
        "digit, and show what a perfect model of the training data would come to."
    )
    for point in names:
        rows = [[run, *(interval_text(values(runs, run, point, figure)) for figure in FIGURES)] for run in runs]
        rows.append([TRAINING, *(f"{floor[figure]:.3g}" for figure in FIGURES)])
        yield f"## {point}\n\n" + report.table(["run", *FIGURES], rows)
    yield "## Changes of the Fréchet distance\n\nPaired over seeds, with the exact sign-flip test's p."
    distance = partial(values, runs, figure="fd")
    rows = [
        [f"{run} against {other}", *(change_text(distance(run, point), distance(other, point)) for point in names)]
        for run, other in pairs(runs)
    ]
    yield report.table(["", *names], rows)
    rows = [
        [run, ", ".join("not noted" if cell["seconds"] is None else str(cell["seconds"]) for cell in cells)]
        for run, cells in runs.items()
    ]
    yield "## Processor time, seconds\n\n" + report.table(["run", "by seed"], rows)


def heldout_runs(results: dict[str, Any]) -> dict[str, Any]:
    """Return run -> its results on the held-out split by seed, from a store's label -> result; in the order of `run`."""
    runs = by_run(results, "heldout")
    order = (BEFORE, PLAIN, FROZEN, ADT.name)
    found = [(place, run) for run in runs for place, name in enumerate(order) if run.startswith(name)]
    return {run: runs[run] for _, run in sorted(found)}


def published() -> dict[str, Any]:
    """Read what has been found: label -> result."""
    return only_group(DOCUMENTS / "small_sd.json")


def best_of(results: dict[str, Any]) -> Recipe:
    """Return the settings of ADT that were best on validation, over two seeds, from a store's label -> result."""

    def of_all(recipe: Recipe) -> float:
        return sum(merit(results[f"validation: {recipe.name}, seed {seed}"]) for seed in CHOSEN_BY)

    return min(CANDIDATES, key=of_all)


def shown_runs(results: dict[str, Any]) -> dict[str, Any]:
    """Return the same as `heldout_runs` with ADT at its best as the last, once that has as many seeds as the others."""
    runs = heldout_runs(results)
    if not {f"validation: {recipe.name}, seed {seed}" for recipe, seed in product(CANDIDATES, CHOSEN_BY)} <= results.keys():
        return runs
    best = best_of(results).name
    cells = by_run(results, "heldout").get(best, [])
    return runs | {best: cells} if len(cells) == len(runs[ADT.name]) else runs


def summary(runs: dict[str, Any], floor: dict[str, float]) -> str:
    """Return the table of docs/benchmarks.md: Fréchet distances, well-formed shares in brackets, means over the seeds.

    Args:
        floor: the training images' figures, the same at every point.
    """
    head = ["FD (well-formed share)", *SHOWN, "recall, 3 @ 10", "KID, 3 @ 10"]
    rows = [
        [run, *distances(cells), f"{mean(cells, '3 @ 10', 'recall'):.2f}", f"{mean(cells, '3 @ 10', 'kid'):.1f}"]
        for run, cells in (runs | {f"{TRAINING}, for comparison": [{"scores": dict.fromkeys(SHOWN, floor)}]}).items()
    ]
    return report.table(head, rows)


def distances(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield Fréchet distance and well-formed share at each point that is shown, means over some runs."""
    yield from (distance_and_share(cells, point) for point in SHOWN)


def distance_and_share(cells: Sequence[dict[str, Any]], point: str) -> str:
    """Format Fréchet distance and well-formed share at a point, means over some runs."""
    return f"{mean(cells, point, 'fd'):.2f} ({mean(cells, point, 'well_formed'):.2f})"


def mean(cells: Sequence[dict[str, Any]], point: str, figure: str) -> float:
    """Return the mean of a figure at a point over some runs."""
    return statistics.fmean(cell["scores"][point][figure] for cell in cells)


def run_by_run(results: dict[str, Any], split: str, shown: Mapping[str, str], seeds: Sequence[int]) -> Iterator[Any]:
    """Yield name, seed and result of every run and seed that a store's label -> result holds.

    Args:
        shown: run -> its name.
    """
    for (run, name), seed in product(shown.items(), seeds):
        if (cell := results.get(f"{split}: {run}, seed {seed}")) is not None:
            yield name, str(seed), cell


def levers_table(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md from a store's label -> result: what was tried on validation, run by run."""
    shown = {recipe.name: recipe.name for recipe in (FROZEN_TRIALS[0], *LEVERS)}
    rows = [[name, seed, *distances([cell])] for name, seed, cell in run_by_run(results, "validation", shown, (0, 1))]
    return report.table(["FD (well-formed share)", "seed", *SHOWN], rows)


def guidance_table(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md of what turns at other guidance scales do, with the first seed."""
    at_one, at_seven = (recipe.name for recipe in GUIDED)
    shown = {BEFORE: "none: the plateau", at_one: "1", ADT.name: "3, as it ships", at_seven: "7"}
    rows = [
        [name, *distances([cell]), *(f"{mean([cell], point, 'recall'):.2f}" for point in ("3 @ 10", "7 @ 10"))]
        for name, _, cell in run_by_run(results, "heldout", shown, BESIDE_SEEDS[:1])
    ]
    return report.table(["turns at guidance", *SHOWN, "recall, 3 @ 10", "recall, 7 @ 10"], rows)


def batch_table(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md of ADT with fewer images a step, run by run."""
    shown = {BEFORE: "plateau", ADT.name: f"16 images, lr {LR}, {TURNS} steps"} | {
        recipe.name: recipe.name.removeprefix("ADT, ") for recipe in (*SMALL_BATCHES, *SMALL_BATCHES_ONCE)
    }
    rows = [
        [name, seed, str(cell["seconds"]), *distances([cell]), f"{mean([cell], '3 @ 10', 'recall'):.2f}"]
        for name, seed, cell in run_by_run(results, "heldout", shown, BESIDE_SEEDS)
    ]
    return report.table(["a step has", "seed", "processor time, s", *SHOWN, "recall, 3 @ 10"], rows)


def pairs(runs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Which runs are compared: those with turns against those without, and against frozen heads."""
    ours = [name for name in runs if name.startswith("ADT")]
    yield from ((run, other) for run in ours for other in runs if not other.startswith("ADT"))


def train_to_the_plateau(host: Path, work: Path) -> None:
    """Train the LoRA that all begin from into the assets, and write down how far each stage came on validation."""
    begin, log_lines = None, []
    for seed, stage in enumerate(TO_THE_PLATEAU, start=1):
        file = work / f"plateau-{stage.name}.safetensors"
        if not file.is_file():
            trained(stage, seed, begin, host, file)
        scores = scored(file, "validation", 108, 500)
        log_lines.append({"stage": stage.name, "steps": stage.steps, "scores": scores})
        begin = file
    assert begin is not None
    PLATEAU.write_bytes(begin.read_bytes())
    write_atomically(PLATEAU.with_suffix(".jsonl"), "".join(json.dumps(line) + "\n" for line in log_lines))


def host_parser(name: str, description: str | None, seeds: int = 0, work: str = "") -> argparse.ArgumentParser:
    """Return the parser of a bench that trains by the host; without seeds there is no option for them.

    Args:
        work: the bench whose LoRAs it shares; it has its own where none is named.
    """
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=(description or "").split("\n")[0])
    if seeds:
        parser.add_argument("--seeds", type=positive, default=seeds, help=f"runs of each kind (default: {seeds})")
    add_host_argument(parser)
    parser.add_argument("--out", type=Path, default=DOCUMENTS, help=f"folder of {name}.json (default: docs/benchmarks)")
    folder = Path(f"{work or name}_work")
    parser.add_argument("--work", type=Path, default=folder, help=f"folder of LoRAs and pictures (default: {folder})")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's.

    Raises SystemExit where no host is found.
    """
    parser = host_parser("small_sd", __doc__, seeds=6)
    parser.add_argument("--levers", action="store_true", help="run other values of some settings on validation instead")
    parser.add_argument("--best", action="store_true", help="run the best of them on the held-out split instead")
    parser.add_argument(
        "--beside", action="store_true", help="run turns at other guidance and with fewer images a step instead"
    )
    parser.add_argument("--plateau", action="store_true", help="train the LoRA that all begin from, into the assets")
    given = parser.parse_args(argv)
    host = host_folder(given.host)
    torch.set_num_threads(1)
    if given.plateau:
        train_to_the_plateau(host, given.work)
        return
    bench = Bench(host, store_of(host, given.out / "small_sd.json"), given.work)
    if given.levers:
        bench.run_levers()
        return
    if given.beside:
        bench.run_beside()
        return
    if given.best:
        bench.run_at_its_best(given.seeds)
    else:
        bench.run(given.seeds)
        bench.floor("heldout")
    results = bench.store.results()[bench.store.group]
    write_atomically(given.out / "small_sd.md", "\n\n".join(paragraphs(shown_runs(results), floor_of(results))) + "\n")


if __name__ == "__main__":
    main()
