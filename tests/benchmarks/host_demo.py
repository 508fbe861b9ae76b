"""`python -m benchmarks.host_demo`: the last mile of a LoRA by the real `train_network.py`, plain and with `--adt`.

A LoRA of the small Stable Diffusion that plain training has brought to its plateau goes on from there with plain training
and with `--adt`, for about the same processor time. The commands are printed, to be copied.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from adt_plugin.demo import pictures, report
from benchmarks.host_training import (
    PLATEAU,
    Recipe,
    add_host_argument,
    command_line,
    figures,
    host_folder,
    images_of,
    load_denoiser,
    point_name,
    train,
    write_training_images,
)
from benchmarks.small_sd import ADT, LR, PLAIN, PLAIN_STEPS
from tinyhost.run import OUTPUT_NAME

RUNS = {"plain training": Recipe(PLAIN, PLAIN_STEPS, LR), "ADT": ADT}
POINTS = ((3.0, 5), (3.0, 10))
SAMPLES, SHOWN, NOISE, SEED = 300, 12, 7, 1
FIGURES = ("fd", "kid", "precision", "recall", "well_formed")


def trained(recipe: Recipe, host: Path, images: Path, folder: Path) -> tuple[Path, float]:
    """Train by the host into a folder; return the LoRA's file and the seconds of the clock that it took."""
    began = time.monotonic()
    train(recipe, SEED, PLATEAU, images, host, folder)
    return folder / f"{OUTPUT_NAME}.safetensors", time.monotonic() - began


def compared(loras: dict[str, Path], out: Path) -> str:
    """Draw the same noise with every LoRA, write `samples.png`, and return the table of figures."""
    panels: list[tuple[str, dict[str, torch.Tensor]]] = [(f"guidance {g:g}, {n} sampler steps", {}) for g, n in POINTS]
    rows = []
    for name, file in loras.items():
        network = load_denoiser(file)
        for (guidance, steps), (_, shown) in zip(POINTS, panels, strict=True):
            drawn, asked = images_of(network, NOISE, SAMPLES, guidance, steps)
            shown[name] = drawn[:SHOWN]
            found = figures(drawn, asked, "heldout")
            rows.append([name, point_name(guidance, steps), *(f"{found[figure]:.3g}" for figure in FIGURES)])
    pictures.sample_rows(out / "samples.png", panels)
    return report.table(["run", "guidance @ steps", *FIGURES], rows)


def run(host: Path, out: Path, runs: dict[str, Recipe]) -> str:
    """Train and compare; return the table, which is also written."""
    images = out / "images"
    if not images.is_dir():
        write_training_images(images)
    folders = {name: out / name.replace(" ", "_") for name in runs}
    for name, recipe in runs.items():
        print(f"{name}, in {host}:\n\n    {command_line(recipe, SEED, PLATEAU, images, folders[name])}\n", flush=True)
    with ThreadPoolExecutor() as pool:
        jobs = {name: pool.submit(trained, recipe, host, images, folders[name]) for name, recipe in runs.items()}
        found = {name: job.result() for name, job in jobs.items()}
    for name, (file, seconds) in found.items():
        print(f"{name}: {file}, {seconds:.0f} s")
    table = compared({"base: the plateau": PLATEAU} | {name: file for name, (file, _) in found.items()}, out)
    (out / "results.md").write_text(table + "\n", encoding="utf-8")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's.

    Raises SystemExit where no host is found.
    """
    parser = argparse.ArgumentParser("python -m benchmarks.host_demo", description=(__doc__ or "").split("\n")[0])
    add_host_argument(parser)
    parser.add_argument("--out", type=Path, default=Path("adt_host_demo"), help="folder (default: adt_host_demo)")
    given = parser.parse_args(argv)
    print(run(host_folder(given.host), given.out.resolve(), RUNS))
    print(f"Written: results.md and samples.png in {given.out.resolve()}")


if __name__ == "__main__":
    main()
