"""What the benchmark compares beyond the demo: rivals with their trials, and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adt_plugin.demo.variants import Variant, changed, plain
from benchmarks import judges, strategies, turns  # noqa: F401  (they name the strategies that are used here)

FROZEN = {"disc_lr": 0.0, "warmup": 8, "disc_steps": 1, "disc_penalty": 0.0}
EMA = 0.99


def plain_trial(lr: float) -> Variant:
    """Plain training at this rate, with an average of the weights."""
    return Variant(f"plain, lr {lr:g}, EMA", replace(plain(lr), ema=EMA))


def frozen_trial(weight: float, lr: float) -> Variant:
    """Heads that are never trained, at this weight and rate, with an average of the denoiser's weights."""
    return Variant(f"frozen heads, weight {weight:g}, lr {lr:g}, EMA", changed(FROZEN | {"weight": weight}, lr=lr, ema=EMA))


def without_average(variant: Variant) -> Variant:
    """The same without an average of the weights."""
    assert variant.plan is not None
    return Variant(variant.name.removesuffix(", EMA"), replace(variant.plan, ema=0.0))


def without_learning(variant: Variant) -> Variant:
    """The same with heads that are never trained."""
    assert variant.plan is not None and variant.plan.adt is not None
    return Variant(f"frozen heads, {variant.name}", replace(variant.plan, adt=replace(variant.plan.adt, **FROZEN)))


def named(variants: Sequence[Variant], *names: str) -> tuple[Variant, ...]:
    """Return the variants of these names."""
    return tuple(variant for variant in variants if variant.name in names)


PLAIN_TRIALS = tuple(plain_trial(lr) for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3))
FROZEN_TRIALS = tuple(frozen_trial(*pair) for pair in ((2, 3e-4), (5, 3e-4), (10, 3e-4), (5, 1e-4), (5, 1e-3)))
"""What each rival is chosen from, on validation; the best is tried without its average too."""

PAPER = (
    Variant("from white noise, no image-to-image", changed({"start_min": 1.0}, strategy="white noise")),
    Variant("no diffusion loss", changed(diffusion=False)),
    Variant("unary discriminator", changed({"disc_type": "unary"})),
    Variant("unconstrained backward path", changed(strategy="unconstrained")),
    Variant("no augmentation", changed({"augment": "none"})),
    Variant("a backbone that has learnt nothing", changed(strategy="untrained backbone")),
    Variant("a backbone that is trained, too", changed(strategy="trained backbone")),
    Variant("the same at a tenth of the heads' rate", changed({"disc_lr": 2e-4}, strategy="trained backbone")),
)
"""Each without one of the paper's parts."""

LEVERS = (
    Variant("hinge loss", changed({"disc_loss": "hinge"})),
    Variant("no penalty", changed({"disc_penalty": 0.0})),
    Variant("one head step a turn", changed({"disc_steps": 1})),
    Variant("heads at a quarter of the rate", changed({"disc_lr": 5e-4})),
    Variant("warm-up of 8 turns", changed({"warmup": 8})),
    Variant("warm-up of 80 turns", changed({"warmup": 80})),
    Variant("a third of the model's rate", changed(lr=3e-5)),
    Variant("three times the model's rate", changed(lr=3e-4)),
    Variant("weight 1", changed({"weight": 1.0})),
    Variant("weight 2.5", changed({"weight": 2.5})),
    Variant("weight 10", changed({"weight": 10.0, "max_grad_ratio": 20.0})),
    Variant("diversity 3", changed({"diversity": 3.0})),
    Variant("diversity 10", changed({"diversity": 10.0})),
    Variant("diversity 10, weight 10", changed({"diversity": 10.0, "weight": 10.0, "max_grad_ratio": 20.0})),
    Variant("starts from the whole path", changed({"start_min": 0.0})),
    Variant("K = 1", changed({"grad_steps": 1})),
    Variant("all steps", changed({"grad_mask": "all"})),
    Variant("10-step grid", changed({"steps": 10})),
    Variant("a turn in every second step", changed({"every": 2})),
    Variant("steps drawn by weight", changed({"grad_mask": "weighted"})),
    Variant("with an average of the weights", changed(ema=EMA)),
)
"""Each with another value of a setting."""

NEIGHBOURS = (
    Variant("starts from .8 of the path", changed({"start_min": 0.8})),
    Variant("always the whole path", changed({"start_min": 1.0})),
    Variant("grids from leading to trailing", changed(strategy="shifted grid")),
    Variant("grids of up to 10 points", changed(strategy="any grid")),
    Variant("stopped at a random step", changed(strategy="stopped")),
    Variant("the same, its last step trained", changed({"grad_mask": "last", "grad_steps": 1}, strategy="stopped")),
    Variant("paths walked on over turns", changed(strategy="continued paths")),
    Variant("starts by what is told apart", changed(strategy="telling starts")),
    Variant("the last two steps", changed({"grad_mask": "last"})),
    Variant("evenly spaced steps", changed({"grad_mask": "even"})),
    Variant("every turn of one strength", changed({"balance": "ratio"})),
    Variant("noise of .3 on what is judged", changed({"noise": 0.3})),
    Variant("heads on the denoiser, noise .3", changed({"noise": 0.3}, strategy="denoiser features")),
    Variant("heads on the denoiser, noise 1", changed({"noise": 1.0}, strategy="denoiser features")),
)
"""Other paths, other steps of them, and what neighbours do: Self Forcing, AlignProp, DRTune, DMD2."""

JUDGES = (
    Variant("spectral norms", changed(strategy="spectral norms")),
    Variant("an average of the heads is followed", changed(strategy="averaged heads")),
    Variant("other images as partners", changed(strategy="other partners")),
    Variant("two scales", changed(strategy="two scales")),
    Variant("short paths pull less", changed(strategy="by length")),
    Variant("unary alone from high starts", changed(strategy="by start")),
    Variant("cached features in the unroll", changed(strategy="cached features")),
)
"""Other heads, other partners, other weights of what they say; and a cheaper way to the image that they judge."""

DIALS = (
    *named(LEVERS, "a third of the model's rate", "three times the model's rate", "weight 1", "weight 2.5", "weight 10"),
    *named(LEVERS, "starts from the whole path", "K = 1", "all steps", "10-step grid", "a turn in every second step"),
    *named(LEVERS, "steps drawn by weight"),
    *named(
        NEIGHBOURS, "starts from .8 of the path", "always the whole path", "evenly spaced steps", "every turn of one strength"
    ),
    *named(JUDGES, "short paths pull less"),
    *named(PAPER, "no augmentation", "a backbone that has learnt nothing"),
    Variant("weight 20", changed({"weight": 20.0, "max_grad_ratio": 40.0})),
    Variant("heads of 128 channels", changed({"disc_width": 128})),
)
FROZEN_LEVERS = tuple(map(without_learning, DIALS))
"""What ADT was tried with, as far as it does not ask heads to learn, with heads that never do; and two dials more."""

ABLATIONS = {"paper": PAPER, "levers": LEVERS, "neighbours": NEIGHBOURS, "judges": JUDGES, "frozen": FROZEN_LEVERS}
"""Groups of ablations by the name under which they are asked for."""
