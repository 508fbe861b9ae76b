"""The plugin's half of the host's saved states: `--save_state` and `--resume`.

Accelerate's state hooks write and read files of the plugin's own inside the host's state folder. Nothing of the plugin is
prepared or registered with the accelerator, so that a state resumes with the plugin and without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adt_plugin.core.config import ADTConfig, ConfigError
from adt_plugin.core.discriminator import Discriminator
from adt_plugin.core.run import state
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host import entry

logger = logging.getLogger(__name__)


class StateKeeper:
    """Saves the turn with the host's states, and restores it when it is built.

    The host resumes before its first batch, the turn is built at the first batch: what was read waits here.

    Args:
        config, discriminator: of the run.
        progress: the turn, None before it is built, and the next optimizer step.
    """

    def __init__(
        self, config: ADTConfig, discriminator: Discriminator, progress: Callable[[], tuple[AdversarialTurn | None, int]]
    ) -> None:
        self.config, self.discriminator, self.progress = config, discriminator, progress
        self.resumed: state.State | None = None

    def register(self, accelerator: Any) -> None:
        """Listen to the accelerator's saving and loading."""
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: self.save(accelerator, Path(folder)))
        accelerator.register_load_state_pre_hook(lambda models, folder: self.load(Path(folder)))

    def save(self, accelerator: Any, folder: Path) -> None:
        """With the host's state, on the main process; nothing before the first turn."""
        turn, step = self.progress()
        if turn is not None and accelerator.is_main_process:
            state.write(state.capture(turn, step), folder)

    def load(self, folder: Path) -> None:
        """Read the state, now, so that one that does not fit ends the run before it trains."""
        if not (folder / state.TENSORS).exists():
            logger.warning("%s was saved without --adt: the discriminator starts anew, with its warm-up.", folder)
            return
        try:
            self.resumed = state.read(folder, self.config, self.discriminator)
        except state.StateError as error:
            entry.stop(error)

    def apply(self, turn: AdversarialTurn) -> int:
        """Put a new turn into the resumed state, if there is one; the optimizer step that comes next."""
        if self.resumed is None:
            return 0
        state.restore(turn, self.resumed)
        return self.resumed.manifest.step


def load_heads(path: str, config: ADTConfig, discriminator: Discriminator) -> None:
    """`--adt_disc_weights`: heads that were trained elsewhere; counter, optimizer and balance start anew.

    Raises:
        ConfigError: the file does not fit.
    """
    try:
        state.restore_heads(discriminator, state.read(Path(path), config, discriminator))
    except state.StateError as error:
        raise ConfigError(f"--adt_disc_weights: {error}") from error
