"""Turns shown in the host's own places: its progress bar and its trackers; and in the run's files."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from PIL import Image

from adt_plugin.core.look import Look
from adt_plugin.core.report import TurnReport
from adt_plugin.core.run.monitor import IN_BAR, Monitor, scalars
from adt_plugin.host.seams import Function, patch_attribute

POSTFIX_KEY = "avr_loss"
"""Only the bar whose postfix has this key is the host's training bar."""

STEP_KEYS = ("loss/current", "loss")
"""A row for the trackers that has one of these is the host's row of a step."""


class Feedback:
    """Shows every turn.

    Args:
        accelerator: its trackers get the numbers and pictures.
        monitor: writes the files; None on every process but the main one.
        undos: takes what gives progress bar and trackers back as they were.
    """

    def __init__(self, accelerator: Any, monitor: Monitor | None, undos: ExitStack) -> None:
        import tqdm

        self.accelerator, self.monitor, self.undos = accelerator, monitor, undos
        self.numbers: dict[str, float] = {}
        self.turns = 0
        undos.callback(patch_attribute(tqdm.std.tqdm, "set_postfix", self._around_postfix))
        undos.callback(patch_attribute(accelerator, "init_trackers", self._around_init_trackers))

    @property
    def places(self) -> str:
        """Where to look, as a sentence; empty on every process but the main one."""
        return self.monitor.places if self.monitor else ""

    def show(self, report: TurnReport, step: int) -> None:
        """Take in a turn of the given optimizer step (from 0)."""
        self.numbers, self.turns = scalars(report), report.turn
        picture = self.monitor.record(report, step) if self.monitor else None
        if picture is not None:
            with Image.open(picture) as pixels:
                self._send("adt/pairs", pixels, step)

    @property
    def draws(self) -> bool:
        """Whether pictures are still of use: on the main process, while its disk takes them."""
        return self.monitor is not None and self.monitor.writing

    def show_progress(self, seen: Look, caption: list[str], step: int) -> None:
        """Add a panel to the strip and send it to the trackers."""
        panel = self.monitor.add_panel(seen, caption) if self.monitor else None
        if panel is not None:
            self._send("adt/progress", panel, step)

    def _around_postfix(self, original: Function) -> Function:
        def set_postfix(bar: Any, ordered_dict: Any = None, refresh: bool = True, **kwargs: Any) -> None:
            if POSTFIX_KEY in kwargs:
                kwargs |= {name: self.numbers[name] for name in IN_BAR if name in self.numbers}
            original(bar, ordered_dict, refresh, **kwargs)

        return set_postfix

    def _around_init_trackers(self, original: Function) -> Function:
        def init_trackers(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            for tracker in self.accelerator.trackers:
                self.undos.callback(patch_attribute(tracker, "log", self._around_log))

        return init_trackers

    def _around_log(self, original: Function) -> Function:
        """Wrap one tracker's `log`: the numbers of a turn go with the first row of a step after it."""
        logged = 0

        def log(values: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal logged
            if logged < self.turns and any(key in values for key in STEP_KEYS):
                values, logged = values | self.numbers, self.turns
            return original(values, *args, **kwargs)

        return log

    def _send(self, name: str, picture: Image.Image, step: int) -> None:
        """Send a picture to every tracker that takes images: TensorBoard and wandb do."""
        pixels = np.asarray(picture)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                # Without a step: the host lets wandb count, and a picture for an earlier count would be dropped.
                tracker.log_images({name: [pixels]}, step=None, commit=False)
