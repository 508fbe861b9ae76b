"""One measured run, and the folder that remembers it: what is finished is never run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adt_plugin.core.run.files import write_atomically
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
        """Readable JSON; `from_json` is the way back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Cell:
        """Raises ValueError, KeyError or TypeError where the text is something else."""
        values = json.loads(text)
        scores = {
            sampler: {int(steps): Scores(**figures) for steps, figures in by_steps.items()}
            for sampler, by_steps in values.pop("scores").items()
        }
        return cls(**values, scores=scores)


class CellStore:
    """A folder of cells by name; the name holds a digest of all settings, so that a changed setting is run anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_or_run(self, label: str, settings: Any, run: Callable[[], Cell]) -> tuple[Cell, bool]:
        """The stored cell, or the one that `run` measures, stored; and whether it was measured now."""
        path = self.folder / f"{label}-{digest(settings)}.json"
        if path.exists():
            return Cell.from_json(path.read_text(encoding="utf-8")), False
        cell = run()
        write_atomically(path, cell.as_json())
        return cell, True


def digest(settings: Any) -> str:
    """Eight hex digits that change with any part of `settings`, which is written out by `repr`."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
