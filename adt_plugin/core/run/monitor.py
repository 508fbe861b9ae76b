"""What the user sees of the turns: rows in a file, numbers for progress bar and trackers, pictures."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adt_plugin.core.run.strip import Strip, displayable, panel

if TYPE_CHECKING:
    from PIL import Image

    from adt_plugin.core.look import Look
    from adt_plugin.core.report import TurnReport

logger = logging.getLogger(__name__)

SHOWN = ("loss_g", "loss_d", "score_real", "score_gen", "grad_norm", "start", "distance", "kid", "spread")
"""Fields of a report that go to the trackers, as `adt/<name>`."""

IN_BAR = ("adt/distance", "adt/loss_d")
"""Of these, what a progress bar has room for."""

ROW = (
    *("turn", "warmup", *SHOWN, "cfg_scale", "grad_positions"),
    *("grad_norm_raw", "grad_norm_diffusion", "step_grad_norms", "skipped", "seconds"),
)
"""Fields of a report that make a row."""

KEYS = {"grad_positions": "masked"}
"""Fields that have another name in a row: the file's format is older than theirs."""

CAPTION_HEIGHT = 14
CAPTIONS = 3
"""Lines of text on a pair; each must fit into 64 pixels."""
MAX_PAIRS = 8


def scalars(report: TurnReport) -> dict[str, float]:
    """Return the `adt/*` numbers of a report that are there; the distance once more under the name of its start."""
    values = {f"adt/{name}": float(getattr(report, name)) for name in SHOWN}
    values[f"adt/distance/start_{report.start}"] = report.distance
    return {name: value for name, value in values.items() if not math.isnan(value)}


class Monitor:
    """Writes `<stem>.jsonl` and `<stem>-<turn>.png` into a folder; the stem is `<name>-adt`.

    Where another run of this name has left its rows, the stem is `<name>-adt-run2`, `-run3` and so on, so that no two runs
    share a file; a run that resumes goes on in the latest. Its first row holds its options. A disk that refuses ends the
    writing with one warning, not the training.

    Args:
        folder: made if it is not there.
        name: of the run, before the suffixes.
        pictures_every: turns between two pictures; 0 for none.
        run: what the first row says of the run.
        resumes: the run goes on from a saved state.
    """

    def __init__(self, folder: Path, name: str, pictures_every: int, run: Mapping[str, str], resumes: bool = False) -> None:
        self.folder, self.pictures_every = folder, pictures_every
        self.writing, self.stem = True, f"{name}-adt"
        self._write(lambda: setattr(self, "stem", self._claim(resumes)))
        self.strip = Strip(self.folder / f"{self.stem}-progress.png", resumes)
        self._append({"event": "run", "time": time.time(), **run})

    def _claim(self, resumes: bool) -> str:
        """Take the first stem without rows and return it, or the last one with rows; another run may be looking for one now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        latest = None
        for number in itertools.count(1):
            stem = self.stem if number == 1 else f"{self.stem}-run{number}"
            path = self.folder / f"{stem}.jsonl"
            if not path.is_file():  # a device is none, and keeps nothing of anybody
                if resumes and latest is not None:
                    return latest
                with contextlib.suppress(FileExistsError):
                    path.touch(exist_ok=path.exists())
                    return stem
            latest = stem
        raise AssertionError("there are no more numbers")

    @property
    def rows(self) -> Path:
        """The file of the rows."""
        return self.folder / f"{self.stem}.jsonl"

    @property
    def places(self) -> str:
        """Where to look, as a sentence."""
        pictures = f", pictures: {self.folder / self.stem}-*.png" if self.pictures_every else ""
        return f"Rows: {self.rows}{pictures}."

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
        path = self.folder / f"{self.stem}-{report.turn:06d}.png"
        shown = (report.gen, report.real, report.pairs, report.start)
        return path if self._write(lambda: pair_picture(*shown).save(path)) else None

    def add_panel(self, look: Look, caption: list[str]) -> Image.Image | None:
        """Add what a look has seen to the strip `<stem>-progress.png`, which begins with the training image itself.

        Returns:
            The panel, if it was written.
        """
        panels = [panel(look.gen, caption)]
        if not self.strip.panels:
            panels.insert(0, panel(look.real, ["the training image", *[""] * (len(caption) - 1)]))
        return panels[-1] if self._write(lambda: self.strip.add(*panels)) else None

    def _append(self, row: dict[str, Any]) -> None:
        def write() -> None:
            with self.rows.open("a", encoding="utf-8") as rows:
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


def pair_picture(gen: Tensor, real: Tensor, scores: Tensor, start: int) -> Image.Image:
    """Draw up to 8 pairs in columns: generated above, real below, each with its score, and above all the steps unrolled.

    Args:
        gen, real: `(B, 3 or 1, H, W)` in [-1, 1]; values outside are clipped.
        scores: `(2, B)`, of generated and of real images.
        start: s in 1..m.
    """
    from PIL import Image, ImageDraw

    gen, real = (displayable(images[:MAX_PAIRS]) for images in (gen, real))
    count, height, width, _ = gen.shape
    canvas = Image.new("RGB", (count * width, 2 * height + CAPTIONS * CAPTION_HEIGHT), "black")
    draw = ImageDraw.Draw(canvas)
    for column, (score_gen, score_real) in enumerate(zip(*scores[:, :count].tolist(), strict=True)):
        left, top = column * width, 0
        for images, lines in ((gen, [f"start {start}", f"gen {score_gen:+.2f}"]), (real, [f"real {score_real:+.2f}"])):
            for text in lines:
                draw.text((left + 2, top + 1), text, fill="white")
                top += CAPTION_HEIGHT
            canvas.paste(Image.fromarray(images[column].numpy()), (left, top))
            top += height
    return canvas
