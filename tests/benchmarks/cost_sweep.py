"""What is measured for the tables of cost, cell by cell."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts
from adt_plugin.core.stopwatch import Stopwatch
from adt_plugin.cost import tiny
from adt_plugin.cost.measure import Base, Measured, measure_base, measure_turn, one_thread, prepared
from adt_plugin.cost.models import MODELS
from adt_plugin.cost.workbench import Workbench, Workload
from benchmarks.one_graph import measure_one_graph
from benchmarks.store import CellStore, is_as_before

GRID_STEPS, GRID_GRAD_STEPS = (4, 10, 20), (1, 2, 4, 8)
"""m and K of the grid."""

MEASURED_HEADS: dict[str, Any] = {"disc_steps": 1, "disc_loss": "hinge", "disc_penalty": 0.0}
"""The heads' training of all that is measured here, which was measured before a turn trained its heads several times. Heads are
a few thousandths of a turn of true size: what the default's cost is among what is counted."""

READ = (
    *("steps", "grad_steps", "grad_mask", "memory", "decode_crop", "offload", "cfg_scale", "sampler", "spacing", "flow_shift"),
    *("backbone", "blocks", "disc_type", "disc_width", "augment", "noise", "image_size", "decoder", "decode_dtype"),
    *("disc_steps", "disc_loss", "disc_penalty", "diversity"),
)
"""Options that what is counted or measured depends on."""

UNREAD = (
    *(
        "begin",
        "lr",
        "weight",
        "balance",
        "max_grad_ratio",
        "start_min",
        "start_max",
        "every",
        "warmup",
        "disc_lr",
        "disc_betas",
        "seed",
    ),
    *("profile", "disc_weights", "max_bad_turns", "pictures_every", "train_text_encoder"),
)
"""Options that it does not: turns are measured from a given start, and the sum over a run is a formula."""

WHOLE = ADTConfig(steps=10, grad_steps=2, decode_crop=0, memory="low", **MEASURED_HEADS)
"""A turn that decodes the whole image; what the levers are measured against."""

SMALL = ADTConfig(steps=4, grad_steps=1, decode_crop=0, memory="low", **MEASURED_HEADS)
"""A short turn, for the growth with resolution and batch."""


@dataclass(frozen=True)
class Scale:
    """How large a device's measurements are.

    Attributes:
        on_gpu: whether it is a graphics card's.
        grid, levers: workloads of these tables.
        resolutions, batches: workloads of the growth tables.
        sizes: workloads of the table of models.
    """

    on_gpu: bool
    grid: Workload
    levers: Workload
    resolutions: tuple[Workload, ...]
    batches: tuple[Workload, ...]
    sizes: tuple[Workload, ...]


USUAL = tuple(
    Workload(model, MODELS[model].resolution, batch, rank, True, "bf16")
    for model in MODELS
    for rank in (16, 0)
    for batch in (1, 4)
)
"""Every model at its own resolution, LoRA and full fine-tuning, batch 1 and 4."""


def scale_of(device: torch.device) -> Scale:
    """A GPU measures what people train; a CPU the same network on small images."""
    if device.type == "cuda":
        usual = USUAL[0]
        sides, batches = (256, 512, 768, 1024), (1, 2, 4, 8)
        return Scale(True, usual, usual, _resolutions(usual, sides), _batches(usual, batches), USUAL)
    small = Workload(resolution=128, dtype="fp32")
    tiny = replace(small, resolution=64)
    growth = _resolutions(tiny, (64, 128, 192)), _batches(tiny, (1, 2, 4))
    return Scale(False, small, replace(small, resolution=192), *growth, (tiny, replace(tiny, rank=0)))


@contextmanager
def in_miniature() -> Iterator[None]:
    """Let all tables inside be those of the tiny model with its own backbone, each as short as it can be."""
    small = Workload(tiny.NAME, 64, 1, 4, True, "fp32")
    larger, whole = replace(small, resolution=128), replace(WHOLE, steps=2, grad_steps=1, **tiny.OPTIONS)
    sizes = {
        "scale_of": lambda device: Scale(device.type == "cuda", small, small, (small, larger), (small,), (small,)),
        "levers": lambda workload, on_gpu: (Lever("whole image", whole), Lever("--adt_offload", replace(whole, offload=True))),
        "USUAL": (small,),
        "GRID_STEPS": (2,),
        "GRID_GRAD_STEPS": (1,),
        "MEASURED_HEADS": MEASURED_HEADS | tiny.OPTIONS,
        "WHOLE": whole,
        "SMALL": whole,
    }
    with patch.multiple(__name__, **sizes):
        yield


def _resolutions(workload: Workload, sides: tuple[int, ...]) -> tuple[Workload, ...]:
    return tuple(replace(workload, resolution=side) for side in sides)


def _batches(workload: Workload, batches: tuple[int, ...]) -> tuple[Workload, ...]:
    return tuple(replace(workload, batch=batch) for batch in batches)


@dataclass(frozen=True)
class Lever:
    """One thing turned.

    Attributes:
        name: as the table shows it.
        config: the whole of the options.
        compiled: the backbone is compiled by `torch.compile`.
    """

    name: str
    config: ADTConfig
    compiled: bool = False


def levers(workload: Workload, on_gpu: bool) -> tuple[Lever, ...]:
    """What the table of levers compares, the reference first; on a CPU there is nowhere to offload to."""
    half = workload.side * 8 // 2
    return (
        Lever("whole image, m = 10, K = 2, replayed", WHOLE),
        Lever("m = 5", replace(WHOLE, steps=5)),
        Lever("K = 1", replace(WHOLE, grad_steps=1)),
        Lever("--adt_memory fast", replace(WHOLE, memory="fast")),
        Lever(f"--adt_decode_crop {half} (half the side)", replace(WHOLE, decode_crop=half)),
        Lever("--adt_decoder, of TAESD's size", replace(WHOLE, decoder="taesd")),
        Lever("--adt_backbone dinov2-small", replace(WHOLE, backbone="facebook/dinov2-small")),
        Lever("backbone compiled", WHOLE, compiled=True),
        *((Lever("--adt_offload", replace(WHOLE, offload=True)),) if on_gpu else ()),
    )


@dataclass(frozen=True)
class Measurement:
    """One cell, measured on a workbench.

    Attributes:
        settings: everything that it depends on beside the workbench's own.
        run: measures it.
    """

    settings: tuple[Any, ...]
    run: Callable[[Workbench, Stopwatch], Base | Measured]


BASE = Measurement(("sd-scripts' step and the parts of a turn",), measure_base)


@dataclass(frozen=True)
class Job:
    """Cells that share a workbench.

    Attributes:
        workload, config: of the workbench.
        measurements: by label.
        compiled: its backbone is compiled.
    """

    workload: Workload
    config: ADTConfig
    measurements: dict[str, Measurement]
    compiled: bool = False


def jobs(scale: Scale) -> Iterator[Job]:
    """Everything that is measured on a device."""
    yield Job(scale.grid, WHOLE, _grid_measurements(scale.grid))
    for lever in levers(scale.levers, scale.on_gpu):
        yield Job(scale.levers, lever.config, {turn_label(scale.levers, lever.name): _turn(lever.config, 6)}, lever.compiled)
    for workload in dict.fromkeys((*scale.resolutions, *scale.batches)):
        yield Job(workload, SMALL, {base_label(workload): BASE, turn_label(workload, "growth"): _turn(SMALL, 4)})
    for workload in scale.sizes:
        default = ADTConfig(**MEASURED_HEADS)
        labels = base_label(workload, "default"), turn_label(workload, "default")
        yield Job(workload, default, dict(zip(labels, (BASE, _turn(default, 3)), strict=True)))


def _grid_measurements(workload: Workload) -> dict[str, Measurement]:
    found: dict[str, Measurement] = {base_label(workload): BASE}
    for steps, grad_steps in grid():
        found[grid_label(steps, grad_steps, "replay")] = _turn(replace(WHOLE, steps=steps, grad_steps=grad_steps), steps)
        found[grid_label(steps, grad_steps, "one graph")] = _one_graph(steps, grad_steps)
    return found


def grid() -> Iterator[tuple[int, int]]:
    """(m, K) with K at most m."""
    yield from ((steps, grad_steps) for steps in GRID_STEPS for grad_steps in GRID_GRAD_STEPS if grad_steps <= steps)


def _turn(config: ADTConfig, start: int) -> Measurement:
    start = min(start, config.steps)
    return Measurement(("a turn", what_is_read(config), start), lambda bench, watch: measure_turn(bench, watch, config, start))


def _one_graph(steps: int, grad_steps: int) -> Measurement:
    settings = ("the whole unroll in one graph", steps, grad_steps)
    config = replace(WHOLE, steps=steps, grad_steps=grad_steps)
    return Measurement(settings, lambda bench, watch: measure_one_graph(bench, watch, config, steps))


def base_label(workload: Workload, options: str = "") -> str:
    """Of a workload's plain step and parts, of the whole image where no options are named."""
    return f"{workload}: {options} parts" if options else f"{workload}: parts"


def turn_label(workload: Workload, name: str) -> str:
    """Of a turn."""
    return f"{workload}: {name}"


def grid_label(steps: int, grad_steps: int, way: str) -> str:
    """Of a cell of the grid; `way` is `replay` or `one graph`."""
    return f"grid: m = {steps}, K = {grad_steps}, {way}"


def settings_of(job: Job, measurement: Measurement) -> tuple[Any, ...]:
    """Return everything that a cell of a job depends on: its own settings, and what the workbench is made from."""
    of_turns = ("steps", "grad_steps", "memory")  # read by turns alone, which say what they were made with
    config = replace(job.config, **{name: getattr(ADTConfig, name) for name in of_turns})
    return job.workload, what_is_read(config), job.compiled, measurement.settings


def what_is_read(config: ADTConfig) -> tuple[tuple[str, Any], ...]:
    """Return the options in `READ`, by name; a guidance scale as the number that it is, however it was written."""
    low, high = config.guidance_scales
    scale = low if low == high else config.cfg_scale
    read = ((name, scale if name == "cfg_scale" else getattr(config, name)) for name in READ)
    return tuple(option for option in read if not is_as_before(option))


def run_sweep(store: CellStore, device: torch.device, repeats: int) -> None:
    """Measure what the store does not hold yet. A network is built only if one of its cells is missing."""
    watch = Stopwatch(device, repeats, cpu_time=True)
    with one_thread(device):
        for job in jobs(scale_of(device)):
            settings = {label: settings_of(job, measurement) for label, measurement in job.measurements.items()}
            missing = [label for label in job.measurements if store.get(label, settings[label]) is None]
            if not missing:
                continue
            bench = prepared(job.workload, job.config, device)
            if job.compiled:
                bench.compile_backbone()
                bench.judge()  # which compiles; not timed
            for label in missing:
                measured = job.measurements[label].run(bench, watch)
                store.get_or_run(label, settings[label], partial(asdict, measured))
                print(label, flush=True)
            del bench
            gc.collect()  # it refers to itself, and a card may not hold two


def as_base(stored: dict[str, Any]) -> Base:
    """A stored result of `measure_base`."""
    return Base(**stored | {"parts": Parts(**stored["parts"])})


def as_measured(stored: dict[str, Any]) -> Measured:
    """A stored result of a turn or of the whole unroll in one graph."""
    return Measured(**stored)
