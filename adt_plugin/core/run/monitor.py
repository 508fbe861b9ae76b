"""What the user sees of the turns: rows in a file, numbers for progress bar and trackers, pictures."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

    from adt_plugin.core.report import TurnReport

logger = logging.getLogger(__name__)

SHOWN = ("loss_g", "loss_d", "score_real", "score_gen", "grad_norm", "start")
"""Fields of a report that go to the progress bar and the trackers, as `adt/<name>`."""

ROW = (
    *("turn", "warmup", *SHOWN, "grad_positions"),
    *("grad_norm_raw", "grad_norm_diffusion", "step_grad_norms", "skipped", "seconds"),
)
"""Fields of a report that make a row."""

KEYS = {"grad_positions": "masked"}
"""Fields that have another name in a row: the file's format is older than theirs."""

CAPTION_HEIGHT = 14
MAX_PAIRS = 8


def scalars(report: TurnReport) -> dict[str, float]:
    """Return the `adt/*` numbers of a report."""
    return {f"adt/{name}": float(getattr(report, name)) for name in SHOWN}


class Monitor:
    """Writes `<name>-adt.jsonl` and `<name>-adt-<turn>.png` into a folder.

    Rows are appended, each run beginning with one that holds its options. A disk that refuses ends the writing with one
    warning, not the training.

    Args:
        folder: made if it is not there.
        name: of the run, before the suffixes.
        pictures_every: turns between two pictures; 0 for none.
        run: what the first row says of the run.
    """

    def __init__(self, folder: Path, name: str, pictures_every: int, run: Mapping[str, str]) -> None:
        self.folder, self.name, self.pictures_every = folder, name, pictures_every
        self.writing = True
        self._append({"event": "run", "time": time.time(), **run})

    def record(self, report: TurnReport, step: int) -> Path | None:
        """Write the report's row and, when it is due, its picture.

        Args:
            step: the optimizer step of the turn, from 0.

        Returns:
            The picture's path, if one was written.
        """
        values = {KEYS.get(name, name): getattr(report, name) for name in ROW}
        row = {key: value for key, value in values.items() if value != {}}
        self._append({"event": "turn", "step": step, **row})
        if self.pictures_every == 0 or report.turn % self.pictures_every:
            return None
        path = self.folder / f"{self.name}-adt-{report.turn:06d}.png"
        return path if self._write(lambda: pair_picture(report.gen, report.real, report.scores).save(path)) else None

    def _append(self, row: dict[str, Any]) -> None:
        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"{self.name}-adt.jsonl").open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(_finite(row)) + "\n")

        self._write(write)

    def _write(self, write: Any) -> bool:
        if not self.writing:
            return False
        try:
            write()
        except OSError as error:
            self.writing = False
            logger.warning("no more ADT rows and pictures, training goes on: %s", error)
        return self.writing


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by None, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pair_picture(gen: Tensor, real: Tensor, scores: Tensor) -> Image.Image:
    """Draw up to 8 pairs in columns: generated above, real below, the pair's score as a caption.

    Args:
        gen, real: `(B, 3 or 1, H, W)` in [-1, 1]; values outside are clipped.
        scores: `(B,)`.
    """
    from PIL import Image, ImageDraw

    gen, real = (_displayable(images[:MAX_PAIRS]) for images in (gen, real))
    count, height, width, _ = gen.shape
    canvas = Image.new("RGB", (count * width, 2 * (height + CAPTION_HEIGHT)), "black")
    draw = ImageDraw.Draw(canvas)
    for column in range(count):
        for row, (images, caption) in enumerate(((gen, f"gen {float(scores[column]):+.2f}"), (real, "real"))):
            top = row * (height + CAPTION_HEIGHT)
            draw.text((column * width + 2, top + 1), caption, fill="white")
            canvas.paste(Image.fromarray(images[column].numpy()), (column * width, top + CAPTION_HEIGHT))
    return canvas


def _displayable(images: Tensor) -> Tensor:
    """Convert `(B, C, H, W)` in [-1, 1] to `(B, H, W, 3)` uint8 on the CPU; very small images are enlarged to 64 pixels."""
    images = images.detach().float().cpu().nan_to_num().clamp(-1, 1)
    factor = -(-64 // images.shape[-1])
    images = F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
