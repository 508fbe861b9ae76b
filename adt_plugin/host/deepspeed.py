"""What DeepSpeed takes into its own hands in a run of `--deepspeed`: the models, the optimizer, and the step inside the pass.

Accelerate's `backward` is there the engine's pass, its clipping, its optimizer's step and its zeroing, all in one; with ZeRO a
gradient is averaged, flattened and gone from `p.grad` as soon as it is whole. So the turn shares that pass (`order.py`).
Nothing here imports DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

WRAPPER = "DeepSpeedWrapper"
"""The host's module around all that is trained; it is prepared in their place, and they are called without it."""


def prepared_as(before: Any, after: Any, names: tuple[str, ...]) -> nn.Module | None:
    """Return the module of one of these class names that the host will call, of an object before and after it was prepared.

    Without DeepSpeed that is the prepared object; with it, the module itself, whose weights the engine has taken over in place.
    None if there is none in it.
    """
    if type(before).__name__ in names:
        prepared: nn.Module = after
        return prepared
    if type(before).__name__ != WRAPPER:
        return None
    return next((model for model in before.models.values() if type(model).__name__ in names), None)


def engine_of(accelerator: Any) -> Any:
    """Return the engine of the host's accelerator; None without DeepSpeed, and before the engine is made."""
    return getattr(getattr(accelerator, "deepspeed_engine_wrapped", None), "engine", None)


def stepped_by(engine: Any, optimizer: Any) -> Any:
    """Return torch's own optimizer, which an engine's holds inside; without an engine the optimizer is torch's own."""
    return optimizer if engine is None else getattr(optimizer, "optimizer", optimizer)


def loss_scale_of(engine: Any) -> float:
    """Return the factor by which the engine's pass multiplies a loss, beyond 1 / accumulation steps; 1 without fp16."""
    return float(getattr(engine.optimizer, "cur_scale", 1.0))


def skipping(engine: Any) -> Callable[[], bool]:
    """Return what tells, after the next pass, whether the engine skipped the optimizer's step that was due in it.

    Every process finds the same. In a pass that only accumulates nothing is skipped: an overflow there shows later, when the
    step is due.
    """
    skipped = engine.skipped_steps
    return lambda: bool(engine.skipped_steps > skipped)
