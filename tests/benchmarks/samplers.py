"""`python -m benchmarks.samplers`: the LoRAs of `benchmarks.small_sd` with other samplers and numbers of steps.

Held-out split, guidance 3, one seed. Resumable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from adt_plugin.demo import report
from benchmarks.beds.small_sd import Sampler
from benchmarks.host_training import PLATEAU, Recipe, figures, host_folder, images_of, load_denoiser
from benchmarks.intervals import paired_change
from benchmarks.small_sd import ADT, Bench, distance_and_share, heldout_runs, host_parser, store_of, values
from tinyhost.models import scheduler

GUIDANCE = 3.0
SEEDS = (2,)
"""Of the six that the benchmark has LoRAs of."""


def sampler_of(name: str) -> Sampler:
    """Build one of diffusers' schedulers with Stable Diffusion's noise schedule, as its pipelines do.

    Args:
        name: `DDIM`, `DDIM, trailing`, `Euler` or `DPM++ 2M`.
    """
    import diffusers

    config = scheduler().config
    build: dict[str, Callable[[], Any]] = {
        "DDIM": scheduler,
        "DDIM, trailing": lambda: diffusers.DDIMScheduler.from_config(config, timestep_spacing="trailing"),
        "Euler": lambda: diffusers.EulerDiscreteScheduler.from_config(config),
        "DPM++ 2M": lambda: diffusers.DPMSolverMultistepScheduler.from_config(config),
    }
    return build[name]()


POINTS = (("DDIM", 3), ("DDIM", 20), ("DDIM", 50), ("DDIM, trailing", 10), ("Euler", 10), ("DPM++ 2M", 10), ("DPM++ 2M", 20))
"""Sampler and number of steps; DDIM at 5 and 10 steps is the benchmark's own."""


def name_of(sampler: str, steps: int) -> str:
    """How scores are called, such as `Euler, 10`."""
    return f"{sampler}, {steps}"


def scored(bench: Bench, recipe: Recipe | None, seed: int) -> dict[str, Any]:
    """Score a recipe's LoRA at all points, or the plateau, on the noise that the benchmark draws for this seed."""
    network, found = load_denoiser(bench.lora(recipe, seed) if recipe else PLATEAU), {}
    for name, steps in POINTS:
        drawn, asked = images_of(network, 108 + seed, bench.samples, GUIDANCE, steps, sampler_of(name))
        found[name_of(name, steps)] = figures(drawn, asked, "heldout")
    return {"scores": found}


def summary(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md: distances, well-formed shares in brackets, changes; means over the seeds."""
    runs, points = heldout_runs(results), [name_of(*point) for point in POINTS]
    rows = [[run, str(len(cells)), *(distance_and_share(cells, point) for point in points)] for run, cells in runs.items()]
    for run in runs:
        if not run.startswith("ADT"):
            changes = (paired_change(*(values(runs, name, point, "fd") for name in (ADT.name, run))).mean for point in points)
            rows.append([f"{ADT.name} against {run}", "", *(f"{change:+.0f} %" for change in changes)])
    return report.table(["FD (well-formed share)", "seeds", *points], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's.

    Raises SystemExit where no host is found.
    """
    parser = host_parser("samplers", __doc__, work="small_sd")
    given = parser.parse_args(argv)
    host = host_folder(given.host)
    torch.set_num_threads(1)
    bench = Bench(host, store_of(host, given.out / "small_sd.json"), given.work)
    store = store_of(host, given.out / "samplers.json")
    for seed, recipe in product(SEEDS, (None, *bench.finalists())):
        label = f"heldout: {recipe.name if recipe else 'plateau'}, seed {seed}"
        settings = (GUIDANCE, POINTS, bench.samples, bench.settings(recipe, seed) if recipe else ())
        found, _ = store.get_or_run(label, settings, partial(scored, bench, recipe, seed))
        print(label, {point: round(scores["fd"], 2) for point, scores in found["scores"].items()}, flush=True)
    print(summary(store.results()[store.group]))


if __name__ == "__main__":
    main()
