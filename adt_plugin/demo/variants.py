"""What the demo compares: the base, plain fine-tuning, and ADT as the miniature uses it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from adt_plugin.core.config import ADTConfig
from adt_plugin.demo.finetune import Plan

REFERENCE = Plan(
    lr=3e-4,
    adt=ADTConfig(
        weight=1.5,
        balance="ratio",
        steps=5,
        grad_steps=2,
        every=1,
        decode_crop=0,
        warmup=60,
        disc_lr=5e-4,
        disc_width=32,
        augment="color,translation,cutout",
        pictures_every=0,
    ),
)
"""ADT as the miniature uses it; what differs from the plugin's defaults was chosen on the validation split."""


@dataclass(frozen=True)
class Variant:
    """A named way to fine-tune, or the untouched base.

    Attributes:
        name: as the tables show it; names are unique.
        plan: None stands for the base.
        samplers: that its samples are drawn with.
    """

    name: str
    plan: Plan | None
    samplers: tuple[str, ...] = ("ddim",)


def diffusion_only(lr: float) -> Plan:
    """Return the plan of the same loop without an adversarial turn."""
    return Plan(lr=lr)


def changed(adt: dict[str, Any] | None = None, **loop: Any) -> Plan:
    """Return the reference with some ADT options and some fields of the plan replaced."""
    assert REFERENCE.adt is not None
    return replace(REFERENCE, adt=replace(REFERENCE.adt, **(adt or {})), **loop)


def hurried(variant: Variant) -> Variant:
    """Return the same with two turns of warm-up at most, for runs that only show that everything works."""
    if variant.plan is None or variant.plan.adt is None:
        return variant
    adt = replace(variant.plan.adt, warmup=min(2, variant.plan.adt.warmup))
    return replace(variant, plan=replace(variant.plan, adt=adt))


BASE = Variant("base", None)
DIFFUSION = Variant("diffusion only, lr 0.0003", diffusion_only(3e-4))
ADT = Variant("ADT", REFERENCE)
