"""One measured run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from adt_plugin.demo.evaluate import ScoreTable
from adt_plugin.demo.metrics import Scores


@dataclass(frozen=True)
class Cell:
    """A fine-tune with one seed, and its scores.

    Attributes:
        run: its name in the tables.
        seconds: wall time of the fine-tune alone, without pretraining and evaluation.
        steps: optimizer steps taken.
        threads: PyTorch's, during the fine-tune.
    """

    run: str
    seed: int
    seconds: float
    steps: int
    threads: int
    scores: ScoreTable

    def as_json(self) -> str:
        """Return readable JSON; `from_json` is the way back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Cell:
        """Read what `as_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: the text is something else.
        """
        return cls.from_values(json.loads(text))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Cell:
        """Build a cell from the values that JSON holds of it; raises as `from_json` does."""
        scores = {
            sampler: {int(steps): Scores(**figures) for steps, figures in by_steps.items()}
            for sampler, by_steps in values["scores"].items()
        }
        return cls(**values | {"scores": scores})
