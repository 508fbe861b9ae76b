"""`python -m benchmarks.pieces`: how many of the small Stable Diffusion's images are in one piece; resumable.

Nearly every real digit is one stroke; broken strokes and specks beside them are the faults that one sees first. Counted without
any network, on the LoRAs of `benchmarks.small_sd`, from the noise that it draws for their seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adt_plugin.demo import report
from benchmarks import DOCUMENTS
from benchmarks.floor import TRAINING
from benchmarks.host_training import PLATEAU, SHAPE, Recipe, host_folder, images_of, load_denoiser, point_name, reference
from benchmarks.intervals import difference_text, interval_text
from benchmarks.small_sd import ADT, DIVERSE, LATE_START, QUARTER, WHOLE_PATH, Bench, host_parser, pairs, store_of
from benchmarks.store import CellStore, by_run, only_group

INK = 0.35
"""How far a channel of a pixel, in [-1, 1], lies from the paper's where there is ink."""
LEAST = 4
"""Pixels that a piece has, of 64 x 64; what is smaller is not counted."""
POINTS = ((2.0, 10), (3.0, 10), (7.0, 10))
"""Guidance and DDIM steps."""
SEEDS, OTHER_SEEDS = range(1, 7), (0, 1)
"""Of the benchmark's runs, and of settings that were tried beside them."""
OTHERS = (ADT, QUARTER, LATE_START, WHOLE_PATH, DIVERSE)


def pieces(image: Tensor) -> int:
    """Count the connected pieces of ink, diagonal neighbours included, in an image `(3, H, W)` in [-1, 1] on plain paper."""
    from scipy import ndimage

    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    paper = border.median(dim=1).values.view(3, 1, 1)
    ink = ((image - paper).abs().amax(0) > INK).numpy()
    labels, _ = ndimage.label(ink, structure=np.ones((3, 3)))
    return int((np.bincount(labels.ravel())[1:] >= LEAST).sum())


def share_in_one_piece(images: Tensor) -> float:
    """Return the share of images `(N, 3, H, W)` that have one piece of ink."""
    return statistics.fmean(pieces(image) == 1 for image in images)


def counted(bench: Bench, recipe: Recipe | None, seed: int) -> dict[str, Any]:
    """Sample with a recipe's LoRA, or at the plateau, at all points, and count."""
    network = load_denoiser(bench.lora(recipe, seed) if recipe else PLATEAU)
    drawn = {point: images_of(network, 108 + seed, bench.samples, *point)[0] for point in POINTS}
    return {point_name(*point): share_in_one_piece(images) for point, images in drawn.items()}


def of_training_images() -> dict[str, Any]:
    """Count in the images that the LoRA learnt from, as the VAE decodes them."""
    share = share_in_one_piece(reference("heldout").train.view(-1, *SHAPE))
    return {point_name(*point): share for point in POINTS}


def published() -> dict[str, Any]:
    """Read what has been found: label -> shares."""
    return only_group(DOCUMENTS / "pieces.json")


def main_runs(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return run -> its shares by seed from a store's label -> shares: what is compared with ADT as it ships."""
    return by_run(results, "main")


def table(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md: means over the seeds with their intervals, and ADT's differences."""
    points, runs = [point_name(*point) for point in POINTS], main_runs(results)
    rows = [
        [run, str(len(cells)), *(interval_text([cell[point] for cell in cells], ".3f") for point in points)]
        for run, cells in runs.items()
    ]
    for ours, other in pairs(runs):
        if other != TRAINING:
            sides = ([[cell[point] for cell in runs[run]] for run in (ours, other)] for point in points)
            rows.append([f"{ours} against {other}", "", *(difference_text(*side) for side in sides)])
    return report.table(["in one piece", "seeds", *points], rows)


def others_table(results: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md of the settings that were tried beside what ships, seed by seed."""
    points = [point_name(*point) for point in POINTS]
    rows = [
        [run, *(" / ".join(f"{cell[point]:.3f}" for cell in cells) for point in points)]
        for run, cells in by_run(results, "beside it").items()
    ]
    return report.table([f"in one piece, seeds {' / '.join(map(str, OTHER_SEEDS))}", *points], rows)


def run(bench: Bench, store: CellStore) -> None:
    """Count what the store does not hold, training what has no LoRA yet."""
    shared = (INK, LEAST, POINTS, bench.samples)
    jobs = [("beside it", recipe, seed) for seed in OTHER_SEEDS for recipe in (None, *OTHERS)]
    jobs = [("main", recipe, seed) for seed in SEEDS for recipe in (None, *bench.finalists(), bench.at_its_best())] + jobs
    store.get_or_run(f"main: {TRAINING}, seed 0", shared, of_training_images)
    for kind, recipe, seed in jobs:
        label = f"{kind}: {recipe.name if recipe else 'plateau'}, seed {seed}"
        settings = (shared, bench.settings(recipe, seed) if recipe else seed)
        found, _ = store.get_or_run(label, settings, partial(counted, bench, recipe, seed))
        print(label, found, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's.

    Raises SystemExit where no host is found.
    """
    given = host_parser("pieces", __doc__, work="small_sd").parse_args(argv)
    host = host_folder(given.host)
    torch.set_num_threads(1)
    store = store_of(host, given.out / "pieces.json")
    run(Bench(host, store_of(host, given.out / "small_sd.json"), given.work), store)
    results = store.results()[store.group]
    print(table(results), others_table(results), sep="\n\n")


if __name__ == "__main__":
    main()
