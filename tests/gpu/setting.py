"""Where and how large everything is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""What a cell found, as JSON values."""


@dataclass(frozen=True)
class Setting:
    """Of one call of the script.

    Attributes:
        out: folder of the results; models and the host's outputs lie below it.
        device: `cuda` or `cpu`.
        miniature: tiny models, few steps.
    """

    out: Path
    device: str
    miniature: bool
