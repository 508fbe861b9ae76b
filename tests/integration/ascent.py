"""`python ascent.py RESULT SCRIPT ARGUMENTS...`: does a turn's gradient lead uphill, in a real trainer with `--adt`?

At the first turn after the warm-up, for a start next to the image and for one at pure noise:

* the host's own gradient is dropped, and the turn's alone is taken from the parameters of the host's optimizers;
* these are moved a little along minus that gradient, and then as far the other way;
* each time the turn is repeated with the same draws and the host's same call.

The result is one JSON object: by start, the `rise` of the generated images' mean score after the step, its `fall` after the
opposite one, and the `expected` change by the gradient's own account. The run ends there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from observing import run_observed
from torch import Tensor

from adt_plugin.core.run import state
from adt_plugin.core.turn import AdversarialTurn

EXPECTED = 0.002
"""Change of the mean score by the gradient's own account: far above float32's rounding, and short enough to be straight."""


class Ascent:
    """Measures one turn; `turn` makes it, always from the same state."""

    def __init__(self, turn: Callable[[], Any], parameters: list[Tensor]) -> None:
        self.turn, self.parameters = turn, parameters

    def score(self) -> float:
        """The mean score of the generated images; the turn's gradient alone is in `p.grad` afterwards."""
        for parameter in self.parameters:
            parameter.grad = None
        return float(self.turn().scores.double().mean())

    @contextmanager
    def moved(self, steps: list[Tensor | None]) -> Iterator[None]:
        """The parameters with these steps added."""
        weights = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            for parameter, step in zip(self.parameters, steps, strict=True):
                if step is not None:
                    parameter += step
        yield
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)

    def measure(self) -> dict[str, float]:
        before = self.score()
        gradients = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        slope = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
        after = []
        for sign in (-1, 1):
            with self.moved([None if g is None else sign * EXPECTED / slope * g for g in gradients]):
                after.append(self.score())
        return {"rise": after[0] - before, "fall": after[1] - before, "expected": EXPECTED}


def install(result: Path) -> None:
    """Measure in place of the first turn after the warm-up."""
    turn = AdversarialTurn.__call__

    def measured(self: AdversarialTurn, *args: Any, **kwargs: Any) -> Any:
        if self.schedule.in_warmup(self.turns):
            return turn(self, *args, **kwargs)
        accelerator = kwargs["backward"].func.__self__
        groups = [group for optimizer in accelerator._optimizers for group in optimizer.param_groups]
        before = state.capture(self, self.config)  # type: ignore[arg-type]

        def again() -> Any:
            state.restore(self, before)
            return turn(self, *args, **kwargs)

        ascent, found = Ascent(again, [parameter for group in groups for parameter in group["params"]]), {}
        for start in (1, self.config.steps):
            self.starts = (start, start)
            found[start] = ascent.measure()
        result.write_text(json.dumps(found))
        raise SystemExit(0)

    AdversarialTurn.__call__ = measured  # type: ignore[method-assign]


if __name__ == "__main__":
    run_observed(install)
