"""What the demo compares: the base, plain fine-tuning, and ADT as the miniature uses it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from adt_plugin.core.config import ADTConfig
from adt_plugin.demo.diffusion import LEADING
from adt_plugin.demo.finetune import Plan

SHIPPED = ADTConfig(disc_width=32, pictures_every=0)
"""The plugin's defaults, but for two: the heads shrink with the backbone, and there is nowhere to put pictures."""


BASE_RATE = 1e-3
"""The learning rate that the shipped denoiser was trained with, which `--adt_lr` is a share of."""


@dataclass(frozen=True)
class Variant:
    """A named way to fine-tune, or the untouched base.

    Attributes:
        name: as the tables show it; names are unique.
        plan: None stands for the base.
        grids: keys of `GRIDS`, on which its samples are drawn.
    """

    name: str
    plan: Plan | None
    grids: tuple[str, ...] = (LEADING,)


def plain(lr: float) -> Plan:
    """Return the plan of the same loop without adversarial turns."""
    return Plan(lr=lr)


def changed(adt: dict[str, Any] | None = None, **loop: Any) -> Plan:
    """Return ADT as it ships with some of its options and some fields of the plan replaced."""
    config = replace(SHIPPED, **(adt or {}))
    return replace(Plan(lr=config.lr * BASE_RATE, adt=config), **loop)


def hurried(variant: Variant) -> Variant:
    """Return the same with two turns of warm-up at most, for runs that only show that everything works."""
    if variant.plan is None or variant.plan.adt is None:
        return variant
    adt = replace(variant.plan.adt, warmup=min(2, variant.plan.adt.warmup))
    return replace(variant, plan=replace(variant.plan, adt=adt))


BASE = Variant("base", None)
PLAIN = Variant("plain", plain(1e-4))
ADT = Variant("ADT", changed())
