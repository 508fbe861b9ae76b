"""Less work per optimizer step: what it costs in distance here, and what it saves in the run of a Stable Diffusion LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from adt_plugin.core.config import ADTConfig
from adt_plugin.cost.count import counted_parts
from adt_plugin.cost.formula import RUN_STEPS, Parts, run_ratio
from adt_plugin.cost.workbench import Workload
from adt_plugin.demo import pictures
from adt_plugin.demo.evaluate import SAMPLER_STEPS
from adt_plugin.demo.report import Groups, spread, table, values
from adt_plugin.demo.variants import Variant

PIXELS = 512 // 16
"""Pixels of Stable Diffusion 1.5 to one of the miniature's: a crop of half the side is one there too."""


def relative_cost(adt: ADTConfig) -> float:
    """Counted time of a 2000-step SD 1.5 LoRA run with so much work per step, over that of the run without turns."""
    config = ADTConfig(steps=adt.steps, grad_steps=adt.grad_steps, every=adt.every, decode_crop=adt.decode_crop * PIXELS)
    return run_ratio(_parts(config.decode_crop), config, RUN_STEPS)


@cache
def _parts(decode_crop: int) -> Parts:
    return counted_parts(Workload(), ADTConfig(decode_crop=decode_crop))


def tradeoff_table(variants: Sequence[Variant], groups: Groups) -> str:
    """One row per variant that is finished, cheapest first."""
    priced = sorted((_cost_of(variant), variant.name) for variant in variants if variant.name in groups)
    head = ["run", "SD 1.5 run, counted", *(f"FD@{n}" for n in SAMPLER_STEPS), "recall@10"]
    return table(
        head,
        [
            [name, f"{cost:.2f} x", *(spread(values(groups[name], "fd", n), 2) for n in SAMPLER_STEPS),
             spread(values(groups[name], "recall", 10), 3)]
            for cost, name in priced
        ],
    )  # fmt: skip


def draw_tradeoff(path: Path, variants: Sequence[Variant], groups: Groups) -> None:
    """Distance against counted cost, one curve per amount of work in a turn, along `--adt_every`; one panel per sampler."""
    finished = [variant for variant in variants if variant.name in groups]
    works = dict.fromkeys(_work(variant) for variant in finished)
    panels = {
        (f"at {steps} sampler steps", "counted time of an SD 1.5 LoRA run, over the plain one"): {
            work: [
                [(_cost_of(variant), fd) for variant, fd in zip(line, by_seed, strict=True)]
                for by_seed in zip(*(values(groups[variant.name], "fd", steps) for variant in line), strict=True)
            ]
            for work in works
            if (line := [variant for variant in finished if _work(variant) == work])
        }
        for steps in SAMPLER_STEPS
    }
    pictures.curves(path, panels)


def _cost_of(variant: Variant) -> float:
    return 1.0 if variant.plan is None or variant.plan.adt is None else relative_cost(variant.plan.adt)


def _work(variant: Variant) -> str:
    """What the variants of one curve have in common: their names but for `every N`."""
    return variant.name.partition(", ")[2] or variant.name
