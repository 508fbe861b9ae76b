"""Whose backward pass pulls the trained steps back: passes of their own after the loop's, or the loop's own, joined.

Both give the same sum in `p.grad`. One joined pass is for loops that allow no second: an optimizer that steps inside the
backward pass, a wrapper that counts passes, parameters that the loop's pass and the turn share, as a text encoder's.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from adt_plugin.core.diffusion.gradient_path import Backward


class Passes(Protocol):
    """Takes the scalars whose gradient a turn adds, 0-dim each with its graph."""

    def add(self, scalar: Tensor) -> None:
        """Take one more."""

    def finish(self) -> None:
        """See to it that the gradient of all is in `p.grad`."""


class OwnPasses:
    """Each scalar is pulled back at once, after the loop's own pass, so that one graph is alive at a time.

    Args:
        backward: the loop's.
    """

    def __init__(self, backward: Backward) -> None:
        self.backward = backward

    def add(self, scalar: Tensor) -> None:
        """Pull it back."""
        self.backward(scalar)

    def finish(self) -> None:
        """Do nothing: all is done."""


class JoinedPass:
    """One pass pulls back the loop's loss and all scalars together: backward(L_diff + sum_i <g_i, o_i>).

    All graphs are alive until then. The loop's factors (1 / accumulation steps, a loss scaler's) act on the sum.

    Args:
        backward: the loop's.
        loss: the diffusion loss, 0-dim, not yet pulled back.
    """

    def __init__(self, backward: Backward, loss: Tensor) -> None:
        self.backward, self.total = backward, loss

    def add(self, scalar: Tensor) -> None:
        """Add it to the sum."""
        self.total = self.total + scalar

    def finish(self) -> None:
        """Pull the sum back; without any scalar this is the loop's own pass, bit for bit."""
        total = self.total
        del self.total  # so that graphs go as they are pulled back
        self.backward(total)


def passes_for(memory: str, backward: Backward, loss: Tensor | None) -> Passes:
    """Return a joined pass where the loop hands over its loss, else passes of their own.

    Raises:
        ValueError: `memory` is `joined`, and there is no loss to join.
    """
    if loss is not None:
        return JoinedPass(backward, loss)
    if memory == "joined":
        raise ValueError("--adt_memory joined needs the diffusion loss: turn(..., loss=loss) in place of the loop's backward")
    return OwnPasses(backward)
