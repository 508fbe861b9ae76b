"""One training image, generated anew as the run goes on: the same latents, noise and prompt from before the first turn on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.look import Look, look
from adt_plugin.core.run.strip import shortened
from adt_plugin.core.schedule import start_range
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host.batch import Predicted
from adt_plugin.host.feedback import Feedback

if TYPE_CHECKING:
    from torch import Tensor

Bind = Callable[[Predicted], Denoiser]
"""Binds a batch's call as a denoiser without gradient."""

Fit = Callable[["Tensor"], None]
"""Fits the sampler of the turns to the size of latents."""


@dataclass
class Progress:
    """Makes the pictures.

    Attributes:
        config: how often, and from which seed.
        turn: whose sampler, decoder and discriminator are used, between turns.
        bind, fit: see there.
        feedback: shows the pictures.
        followed: the batch whose first image is followed, once there is one.
    """

    config: ADTConfig
    turn: AdversarialTurn
    bind: Bind
    fit: Fit
    feedback: Feedback
    followed: Predicted | None = field(default=None, init=False)

    def begin(self, batch: Predicted, step: int) -> None:
        """Follow the first image of this batch, unless one is followed already, and show what the model makes of it now."""
        if self.followed is None and self.config.pictures_every:
            self.followed = replace(batch, call=batch.call.detached())
            self.show(batch, step)

    def go_on(self, batch: Predicted, step: int) -> None:
        """Show what it makes of it after a turn, if a picture is due.

        Args:
            batch: of that turn.
        """
        if self.config.pictures_every and self.turn.turns % self.config.pictures_every == 0:
            self.show(batch, step)

    def show(self, batch: Predicted, step: int) -> None:
        """Make a picture on the main process."""
        followed = self.followed
        if followed is None or not self.feedback.draws:
            return
        self.fit(followed.noised.latents)
        longest = start_range(self.config)[1]
        seen = look(self.turn, self.bind(followed), followed.noised.latents, longest, self.config.seed)
        self.fit(batch.noised.latents)
        self.feedback.show_progress(seen, lines(seen, self.turn.turns, step, followed.caption), step)


def lines(seen: Look, turns: int, step: int, caption: str) -> list[str]:
    """Return the lines above a panel.

    Args:
        caption: of the image; empty where the host's batch has none.
    """
    scores = f"score gen {seen.score_gen:+.2f}  real {seen.score_real:+.2f}" if turns else "scores: nothing learned yet"
    said = [f"turn {turns}  step {step}", scores, f"{seen.start} steps unrolled"]
    return [*said, shortened(caption)] if caption else said
