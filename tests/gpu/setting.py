"""Where and how large everything is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""What a cell found, as JSON values."""


@dataclass(frozen=True)
class Setting:
    """Of one call of the script.

    Attributes:
        out: folder of the results.
        device: `cuda` or `cpu`.
        miniature: tiny models, few steps.
        scratch: folder of what is large and can be made again: models, images, what the host writes; below `out` by default.
        limit: seconds that a cell may take.
    """

    out: Path
    device: str
    miniature: bool
    scratch: Path | None = None
    limit: float = math.inf

    def place(self, name: str) -> Path:
        """A folder for what can be made again."""
        return (self.scratch or self.out) / name
