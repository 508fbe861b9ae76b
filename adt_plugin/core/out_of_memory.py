"""A device whose memory runs out in a turn: where that was, and what the turn held, given back."""

from __future__ import annotations

import gc

import torch

from adt_plugin.core.errors import AdtError

OUT_OF_MEMORY: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""PyTorch's own error; its first name is older than torch 2.5."""


class TurnOutOfMemoryError(AdtError, OUT_OF_MEMORY):  # type: ignore[misc, valid-type]
    """A device's memory ran out in a turn.

    Attributes:
        stage: of `STAGES`, the last one that had begun.
        reason: the first line of PyTorch's message.
        in_gradient: whether `p.grad` may hold a part of the turn's gradient.
    """

    def __init__(self, stage: str, reason: str, in_gradient: bool, message: str = "") -> None:
        super().__init__(message or f"memory ran out in a turn's stage {stage!r} ({reason})")
        self.stage, self.reason, self.in_gradient = stage, reason, in_gradient


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop: what was asked for, and what is free.

    PyTorch goes on with what other processes hold, and with advice for its allocator.
    """
    asked = str(error).strip().partition("\n")[0].partition(" Including non-PyTorch memory")[0]
    return asked.rstrip(".") or type(error).__name__


def free_what_is_cached(device: torch.device) -> None:
    """Give the device back what nothing refers to any more; call it when the error, whose frames hold a turn, is gone."""
    gc.collect()
    getattr(getattr(torch, device.type, None), "empty_cache", lambda: None)()
