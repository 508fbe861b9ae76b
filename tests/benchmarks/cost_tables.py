"""docs/benchmarks/cost.md: what was counted, and what was measured on which device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import RUN_STEPS, Parts, as_sampled, mean_turn, run_ratio, total, turn_shares
from adt_plugin.cost.count import Peaks, counted_parts, counted_peaks, kept_graphs
from adt_plugin.cost.measure import Base, Measured
from adt_plugin.cost.report import GIB, TERA
from adt_plugin.cost.workbench import Workload
from adt_plugin.demo.report import table
from benchmarks import cost_sweep as sweep
from benchmarks.cost_sweep import Scale

COUNTED = "counted"
FINISH_STEPS = (160, 640)
"""Of the runs that finish a LoRA, as README.md has them: of four images a step or more, and of one."""
TIME_TARGET, PEAK_TARGET, SLOPE_TARGET, RUN_TARGET = 1.15, 1.10, 0.01, 1.5

INTRODUCTION = """# What a turn costs

Written by `python -m benchmarks.cost` in `tests/`, which resumes where it was interrupted; every number is in
[cost.json](cost.json). [cost.md](../cost.md) says what to turn.

The models are of true size with random weights: what a step costs does not depend on them. **f** is one denoiser forward at
the training resolution. *sd-scripts' step* is the diffusion loss's forward and backward, the optimizer included where it is
measured. A LoRA has rank 16 on the linear layers of the transformer blocks; full fine-tuning holds weights, gradients and
AdamW's moments in bf16. *The peak's ratio* is the peak of a step with a turn over that of sd-scripts' step and the frozen
backbone's weights together. Targets: a turn at most 1.15 times the sum of its parts measured alone; a peak of at most 1.10 for
a LoRA with gradient checkpointing, the same at any K and m to 1 %; a run with the defaults at most 1.5 times the plain run."""

COUNTING = """## Counted

Floating-point operations (matrix products, convolutions, attention) and bytes of live tensors, from the same code on tensors
without data. Not counted: text encoders, the VAE's encoder, the optimizer's and kernels' scratch space, what the driver and
the allocator take. The options are the defaults, but where a line says otherwise."""


@dataclass(frozen=True)
class Counted:
    """What `count` says of a workload with one set of options."""

    parts: Parts
    peaks: Peaks


def count(workload: Workload, config: ADTConfig) -> Counted:
    """Operations and bytes."""
    return Counted(counted_parts(workload, config), counted_peaks(workload, config))


def counted_cases() -> Iterator[tuple[Workload, str, ADTConfig]]:
    """(workload, name of the options, options)."""
    for workload in sweep.USUAL:
        yield workload, "defaults", ADTConfig()
        if workload.rank and workload.batch == 1:
            yield workload, "whole image", ADTConfig(decode_crop=0)


def defaults(workload: Workload) -> ADTConfig:
    """The options of a run that sets none."""
    return as_sampled(ADTConfig(), workload.model)


def paragraphs(machines: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The whole document."""
    yield INTRODUCTION
    yield COUNTING
    counted = machines.get(COUNTED, {})
    yield counted_table(counted)
    yield from counted_verdict(counted)
    yield from finishing_section(counted)
    measured = {name: cells for name, cells in machines.items() if name != COUNTED}
    for name, cells in measured.items():
        scale = sweep.scale_of(torch.device("cuda" if is_gpu(name) else "cpu"))
        yield f"## Measured: {name}"
        yield from measured_sections(cells, scale)
    if not any(map(is_gpu, measured)):
        yield "## Measured: a GPU\n\nNot measured yet. The same command measures there what was counted above."


def is_gpu(machine: str) -> bool:
    """Whether a machine's name is a graphics card's; every processor's says how many threads were used."""
    return "thread" not in machine


# Counted


def counted_table(cells: dict[str, Any]) -> str:
    """Every model at its own resolution."""
    head = ["model", "trained", "batch", "options", "f, TFLOP", "sd-scripts' step", "a turn", "a run", "peak without", "with"]
    rows = []
    for workload, name, config in counted_cases():
        stored = cells.get(f"{workload}: {name}")
        if stored is None:
            continue
        counted = Counted(Parts(**stored["parts"]), Peaks(**stored["peaks"]))
        rows.append([*workload_columns(workload), name, *counted_columns(counted, as_sampled(config, workload.model))])
    return table([*head, "ratio", "every kept graph"], rows)


def counted_verdict(cells: dict[str, Any]) -> Iterator[str]:
    """Whether a LoRA with the default options holds the targets."""
    loras = [workload for workload, name, _ in counted_cases() if workload.rank and name == "defaults"]
    found = [(workload, cells[f"{workload}: defaults"]) for workload in loras if f"{workload}: defaults" in cells]
    known = [(defaults(workload), Parts(**stored["parts"]), Peaks(**stored["peaks"])) for workload, stored in found]
    if known:
        ratio = max(peaks.ratio(kept_graphs(config)) for config, _, peaks in known)
        run = max(run_ratio(parts, config, RUN_STEPS) for config, parts, _ in known)
        yield (
            f"A LoRA with the defaults: a peak's ratio of at most {ratio:.3f} ({verdict(ratio <= PEAK_TARGET)}), "
            f"a run of at most {run:.2f} plain ones ({verdict(run <= RUN_TARGET)})."
        )


def finishing_section(cells: dict[str, Any]) -> Iterator[str]:
    """What it costs to finish a LoRA in a run of its own, every step of which has a turn, and to begin turns earlier."""
    finishes = [f"{steps} steps with `--adt_begin 0`" for steps in FINISH_STEPS]
    head = ["model", *finishes, "a step of it", f"{RUN_STEPS} steps with `--adt_begin 0.8`"]
    rows = []
    for workload, name, config in counted_cases():
        stored = cells.get(f"{workload}: {name}")
        if stored is None or name != "defaults" or not workload.rank or workload.batch > 1:
            continue
        config, parts = as_sampled(config, workload.model), Parts(**stored["parts"])
        ratios = [run_ratio(parts, replace(config, begin=0), steps) for steps in FINISH_STEPS]
        lengths = [f"as long as {steps * ratio:.0f} plain ones" for steps, ratio in zip(FINISH_STEPS, ratios, strict=True)]
        longer = run_ratio(parts, replace(config, begin=0.8), RUN_STEPS)
        title = workload.size.title
        rows.append([title, *lengths, f"{ratios[-1]:.1f} x", f"{longer:.2f} x"])
    if rows:
        yield "### A run of its own, or a longer adversarial part\n\nA LoRA, batch 1, the warm-up included."
        yield table(head, rows)


def workload_columns(workload: Workload) -> list[str]:
    """Model, what is trained, batch."""
    size = workload.size
    return [f"{size.title}, {workload.side * 8} px", "LoRA" if workload.rank else "all weights", str(workload.batch)]


def counted_columns(counted: Counted, config: ADTConfig) -> list[str]:
    """Time in forwards, memory in GiB."""
    parts, peaks, graphs = counted.parts, counted.peaks, kept_graphs(config)
    times = [f"{cost / parts.forward:.1f} f" for cost in (parts.step, total(mean_turn(parts, config)))]
    memory = [f"{peak / GIB:.2f}" for peak in (peaks.plain, peaks.keeping(graphs))]
    run = f"{run_ratio(parts, config, RUN_STEPS):.2f} x"
    return [f"{parts.forward / TERA:.2f}", *times, run, *memory, f"{peaks.ratio(graphs):.2f}", f"{peaks.graph / GIB:.2f}"]


# Measured


def measured_sections(cells: dict[str, Any], scale: Scale) -> Iterator[str]:
    """All tables of one device."""
    yield from grid_section(cells, scale.grid)
    yield from lever_section(cells, scale)
    yield from growth_section(cells, scale)
    if scale.sizes:
        yield from size_section(cells, scale.sizes)


def grid_section(cells: dict[str, Any], workload: Workload) -> Iterator[str]:
    """Time and peak against m and K, beside the whole unroll in one graph."""
    label = sweep.base_label(workload)
    if label not in cells:
        return
    base = sweep.as_base(cells[label])
    found = [pair for pair in sweep.grid() if all(sweep.grid_label(*pair, way) in cells for way in ("replay", "one graph"))]
    turns = {pair: sweep.as_measured(cells[sweep.grid_label(*pair, "replay")]) for pair in found}
    naive = {pair: sweep.as_measured(cells[sweep.grid_label(*pair, "one graph")]) for pair in found}
    yield (
        f"### m and K\n\n{workload}; the whole image decoded, from the start of the grid (s = m). *One graph* is the whole "
        "unroll in one graph, inputs included, the last K steps with gradient, and without an optimizer of the heads."
    )
    yield parts_table(base)
    head = ["m", "K", "turn, s", "over its parts", "over sd-scripts' step", "peak's ratio"]
    rows = [grid_row(base, pair, turns[pair], naive[pair]) for pair in found]
    yield table([*head, "one graph: time over the turn's", "one graph: peak's ratio"], rows)
    if found:
        worst = max(turns[pair].seconds / expected_seconds(base, *pair) for pair in found)
        peaks = [turn.peak for turn in turns.values()]
        slope, ratio = max(peaks) / min(peaks) - 1, max(peaks) / (base.peak + base.backbone)
        yield (
            f"A turn is at most {worst:.2f} times its parts ({verdict(worst <= TIME_TARGET)}). "
            f"Peaks differ by {slope:.2%} over all m and K ({verdict(slope < SLOPE_TARGET)}); "
            f"their ratio is at most {ratio:.3f} ({verdict(ratio <= PEAK_TARGET)})."
        )
        yield exponents({"m, at K = 2": [(m, turns[m, k].seconds) for m, k in found if k == 2],
                         "K, at m = 20": [(k, turns[m, k].seconds) for m, k in found if m == 20]})  # fmt: skip


def parts_table(base: Base) -> str:
    """What each part costs alone."""
    names = [name.replace("_", " ") for name in Parts.__dataclass_fields__]
    seconds = list(asdict(base.parts).values())
    return table(
        ["", "sd-scripts' step with its optimizer", *names],
        [["seconds", f"{base.seconds:.3g}", *(f"{value:.3g}" for value in seconds)],
         ["in f", *(f"{value / base.parts.forward:.2f}" for value in (base.seconds, *seconds))]],
    )  # fmt: skip


def grid_row(base: Base, pair: tuple[int, int], turn: Measured, naive: Measured) -> list[str]:
    """One m and K."""
    return [
        *map(str, pair),
        f"{turn.seconds:.3g}",
        f"{turn.seconds / expected_seconds(base, *pair):.2f}",
        f"{turn.seconds / base.seconds:.2f}",
        peak_ratio(base, turn),
        f"{naive.seconds / turn.seconds:.2f}",
        peak_ratio(base, naive),
    ]


def expected_seconds(base: Base, steps: int, grad_steps: int) -> float:
    """The sum of a whole path's parts."""
    config = ADTConfig(steps=steps, grad_steps=grad_steps, memory="low")
    return total(list(turn_shares(base.parts, config, steps)))


def peak_ratio(base: Base, measured: Measured) -> str:
    """Over sd-scripts' step and the backbone."""
    return f"{measured.peak / (base.peak + base.backbone):.3f}"


def verdict(held: bool) -> str:
    """Of a target."""
    return "held" if held else "missed"


def lever_section(cells: dict[str, Any], scale: Scale) -> Iterator[str]:
    """Each lever against the reference."""
    workload = scale.levers
    found = [
        (lever.name, sweep.as_measured(cells[label]))
        for lever in sweep.levers(workload, scale.on_gpu)
        if (label := sweep.turn_label(workload, lever.name)) in cells
    ]
    if not found:
        return
    reference = found[0][1]
    yield f"### Levers\n\n{workload}; one thing turned at a time, one turn each from step 6 (from step 5 of 5 where m = 5)."
    rows = (
        [name, f"{turn.seconds:.3g}", f"{turn.seconds / reference.seconds - 1:+.0%}",
         f"{turn.peak / GIB:.2f}", f"{(turn.peak - reference.peak) / GIB:+.2f}"]
        for name, turn in found
    )  # fmt: skip
    yield table(["", "turn, s", "", "peak, GiB", ""], rows)


def growth_section(cells: dict[str, Any], scale: Scale) -> Iterator[str]:
    """Time and peak against resolution and batch."""
    for title, workloads, measure in (
        ("pixels", scale.resolutions, lambda workload: workload.side**2 * 64),
        ("batch", scale.batches, lambda workload: workload.batch),
    ):
        found = [w for w in workloads if {sweep.base_label(w), sweep.turn_label(w, "growth")} <= cells.keys()]
        if not found:
            continue
        bases = [sweep.as_base(cells[sweep.base_label(w)]) for w in found]
        turns = [sweep.as_measured(cells[sweep.turn_label(w, "growth")]) for w in found]
        yield f"### Growth with {title}\n\n{found[0]} and up; m = 4, K = 1, whole image, s = 4."
        rows = (
            [str(measure(w)), f"{base.seconds:.3g}", f"{turn.seconds:.3g}", f"{turn.seconds / base.seconds:.2f}",
             f"{run_ratio(base.parts, defaults(w), RUN_STEPS):.2f} x", f"{turn.peak / GIB:.2f}", peak_ratio(base, turn)]
            for w, base, turn in zip(found, bases, turns, strict=True)
        )  # fmt: skip
        head = [
            title,
            "sd-scripts' step, s",
            "turn, s",
            "turn over step",
            "a run, default m, K, every",
            "peak, GiB",
            "peak's ratio",
        ]
        yield table(head, rows)
        sizes = [measure(w) for w in found]
        yield exponents({f"{title}, sd-scripts' step": list(zip(sizes, (b.seconds for b in bases), strict=True)),
                         f"{title}, turn": list(zip(sizes, (t.seconds for t in turns), strict=True))})  # fmt: skip


def size_section(cells: dict[str, Any], sizes: Sequence[Workload]) -> Iterator[str]:
    """Every model with the default options."""
    yield "### Models, default options"
    rows = []
    for workload in sizes:
        labels = sweep.base_label(workload, "default"), sweep.turn_label(workload, "default")
        if not set(labels) <= cells.keys():
            rows.append([*workload_columns(workload), *["not measured"] * 4])
            continue
        base, turn = sweep.as_base(cells[labels[0]]), sweep.as_measured(cells[labels[1]])
        run = f"{run_ratio(base.parts, defaults(workload), RUN_STEPS):.2f} x"
        rows.append([*workload_columns(workload), f"{base.seconds:.3g}", f"{turn.seconds:.3g}", run, peak_ratio(base, turn)])
    yield table(["model", "trained", "batch", "step, s", "turn, s", "a run", "peak's ratio"], rows)


def exponents(curves: dict[str, list[tuple[float, float]]]) -> str:
    """A sentence with the exponent of each curve that has two points or more."""
    fitted = (f"{exponent(points):.2f} ({name})" for name, points in curves.items() if len(points) > 1)
    return f"Fitted exponents of time: {', '.join(fitted)}."


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """b of y = a x^b, by least squares of the logarithms."""
    xs, ys = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    products = ((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True))
    return sum(products) / sum((x - middle_x) ** 2 for x in xs)
