"""Signs that an adversarial game goes wrong: turns that are not finite, one side that has won, images that get worse."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from typing import TYPE_CHECKING

from torch import Tensor

from adt_plugin.core.discriminator.losses import LOSSES, AdversarialLoss
from adt_plugin.core.distributed import all_processes_agree, rank
from adt_plugin.core.errors import AdtError

if TYPE_CHECKING:
    from adt_plugin.core.report import TurnReport

logger = logging.getLogger(__name__)

PATIENCE, LEAST_PATIENCE = 50, 10
"""The most and the fewest turns in a row before a one-sided game is reported (ours)."""

WON = (
    "the discriminator has told every pair apart for %d turns, so that its gradient says little: lower --adt_disc_lr, or "
    "raise --adt_disc_penalty."
)
LOST = (
    "the discriminator has scored generated images above real ones for %d turns, so that its gradient leads nowhere: raise "
    "--adt_disc_lr or --adt_warmup, or lower --adt_weight."
)

COLLAPSED = (
    "generated images have varied less than half as much as real ones for %d turns (adt/spread): look at the pictures; if they "
    "are all alike, stop, go back to a file from before, and lower --adt_weight (docs/options.md, Recover a run)."
)
DRIFTING = (
    "generated images have been a fifth farther from real ones than at first for %d turns (adt/distance): look at the "
    "pictures; if they got worse, stop, go back to a file from before, and lower --adt_weight (docs/options.md, Recover a run)."
)
ALIKE, FARTHER = 0.5, 1.2
"""What the last two go by (ours)."""

FIRST = 10
"""So many turns from a start say where its distance began (ours)."""


def patience_for(turns: int) -> int:
    """Return how many turns in a row are reported in a run of so many adversarial ones: a quarter, within bounds.

    A short run is to be warned before it ends, too: at batch 1 its first 32 turns settle the statistics, and the next 32 make
    the sets that `spread` compares.
    """
    return min(PATIENCE, max(LEAST_PATIENCE, turns // 4))


class Drift:
    """How many times as far as at first generated windows lie from real ones, start by start, as a moving average.

    Attributes:
        level: 1 at the beginning.
    """

    def __init__(self) -> None:
        self.first: dict[int, list[float]] = defaultdict(list)
        self.level = 1.0

    def add(self, start: int, distance: float) -> None:
        """Take in a turn from this start."""
        first = self.first[start]
        if len(first) < FIRST:
            first.append(distance)
        elif sum(first) > 0:
            self.level += 0.05 * (distance * FIRST / sum(first) - self.level)


class BadTurnsError(AdtError, RuntimeError):
    """Too many turns in a row were not finite; the message is the diagnosis."""


class Health:
    """Watch over a run's turns. Every process decides alike whether the run ends; the first one warns.

    Args:
        max_bad_turns: so many turns in a row that are not finite end the run; 0 lets it go on.
        loss: of the game, which knows when it is won.
        patience: turns in a row before a game that goes wrong is reported.
    """

    def __init__(self, max_bad_turns: int, loss: AdversarialLoss = LOSSES["relativistic"], patience: int = PATIENCE) -> None:
        self.max_bad_turns, self.loss, self.patience = max_bad_turns, loss, patience
        self.bad_turns = self.bad_in_a_row = 0
        self.in_a_row = {WON: 0, LOST: 0, COLLAPSED: 0, DRIFTING: 0}
        self.drift = Drift()

    def examine(self, report: TurnReport) -> None:
        """Count, log and warn.

        Raises:
            BadTurnsError: the last `max_bad_turns` turns were not finite.
        """
        if report.skipped:
            self._count_bad(report)
            return
        self.bad_in_a_row = 0
        self._note(WON, self.loss.is_won(report.loss_d))
        self._note(LOST, not report.warmup and report.score_gen > report.score_real)
        self.drift.add(report.start, report.distance)
        self._note(COLLAPSED, not report.warmup and report.spread < ALIKE)
        self._note(DRIFTING, not report.warmup and self.drift.level > FARTHER)

    def _count_bad(self, report: TurnReport) -> None:
        self.bad_turns += 1
        self.bad_in_a_row += 1
        _warn("turn %d was not finite and has been dropped (%d so far).", report.turn, self.bad_turns)
        if self.bad_in_a_row == self.max_bad_turns:
            raise BadTurnsError(diagnosis(report, self.bad_in_a_row))

    def _note(self, warning: str, holds: bool) -> None:
        """Count the turns in a row for which it holds; warn once, when they are many."""
        if self.in_a_row[warning] >= self.patience:
            return
        self.in_a_row[warning] = self.in_a_row[warning] + 1 if holds else 0
        if self.in_a_row[warning] == self.patience:
            _warn(warning, self.patience)


def _warn(message: str, *values: int) -> None:
    """Log a warning once for all processes."""
    if rank() == 0:
        logger.warning(message, *values)


def diagnosis(report: TurnReport, turns: int) -> str:
    """Say where the numbers stopped being finite, in any process, and what to change."""
    if not _finite_everywhere(report.real):
        found, way = "decoded training images", "set --adt_decode_dtype fp32, or check the VAE and the cached latents"
    elif not _finite_everywhere(report.gen):
        found, way = "generated images", "the model itself diverges: lower the learning rate, or --adt_weight"
    elif not math.isfinite(report.loss_d):
        found, way = "the discriminator's scores", "set --adt_decode_dtype fp32, or lower --adt_disc_lr"
    else:
        found, way = "the adversarial gradient", "set --adt_decode_dtype fp32, or lower --adt_weight"
    return f"{turns} turns in a row were not finite, first in {found}: {way} (--adt_max_bad_turns {turns} ends the run)."


def _finite_everywhere(tensor: Tensor) -> bool:
    return all_processes_agree(tensor.isfinite().all())
