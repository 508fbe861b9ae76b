"""The plugin's half of the host's saved states: `--save_state` and `--resume`.

Accelerate's state hooks write and read files of the plugin's own inside the host's state folder. Nothing of the plugin is
prepared or registered with the accelerator, so that a state resumes with the plugin and without it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError  # type: ignore[attr-defined]

from adt_plugin.core.config import DiscriminatorConfig
from adt_plugin.core.discriminator import Discriminator
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.run import state
from adt_plugin.host.seams import Function, Undo, ending_the_run, patch_attribute

logger = logging.getLogger(__name__)

HOST_COUNT = "train_state.json"
"""In which the host's LoRA trainers note in a state how far they had come."""


def on_save(accelerator: Any, capture: Callable[[], state.State]) -> Undo:
    """Write what `capture` returns into every state folder that the host saves; on the main process alone."""

    @ending_the_run
    def save(models: Any, weights: Any, folder: str) -> None:
        if accelerator.is_main_process:
            state.write(capture(), Path(folder))

    return _removing(accelerator.register_save_state_pre_hook(save))


def on_load(accelerator: Any, read: Callable[[Path], None]) -> Undo:
    """Call `read` with every state folder that the host resumes from, before it trains."""

    @ending_the_run
    def load(models: Any, folder: str) -> None:
        read(Path(folder))

    return _removing(accelerator.register_load_state_pre_hook(load))


def on_full_disk(accelerator: Any, whole: list[Path]) -> Undo:
    """Note every state folder that the host has saved whole; one that the disk refuses ends the run with a sentence.

    Args:
        whole: folders of whole states, the newest last; the host may remove old ones.
    """

    def around_save_state(original: Function) -> Function:
        def save_state(output_dir: str | None = None, *args: Any, **kwargs: Any) -> Any:
            try:
                saved = original(output_dir, *args, **kwargs)
            except (OSError, SafetensorError, RuntimeError) as error:
                if not _is_of_the_disk(error):
                    raise
                raise state.StateError(_not_saved(Path(output_dir or accelerator.project_dir), whole, error)) from error
            whole.append(Path(saved))
            return saved

        return save_state

    return patch_attribute(accelerator, "save_state", around_save_state)


def _is_of_the_disk(error: Exception) -> bool:
    """Return whether a file could not be written; torch and safetensors have no class for it."""
    return isinstance(error, OSError) or any(
        word in str(error) for word in ("PytorchStreamWriter", "inline_container", "os error")
    )


def _not_saved(folder: Path, whole: list[Path], error: Exception) -> str:
    last = next((known for known in reversed(whole) if known.is_dir() and known != folder), None)
    way_out = f"the last whole one is {last}, --resume goes on from there" if last else "there is no earlier one"
    reason = str(error).strip().splitlines()[0]
    return f"the state {folder} could not be saved ({reason}): make room and delete it; {way_out}."


def _removing(handle: Any) -> Undo:
    return lambda: handle.remove()


def read_state(folder: Path, config: DiscriminatorConfig, discriminator: Discriminator) -> state.State | None:
    """Read the plugin's part of a state folder; None, with a warning, where the state was saved without the plugin.

    Raises:
        StateError: it does not fit the run.
    """
    if not (folder / state.TENSORS).exists():
        logger.warning("%s was saved without --adt: the discriminator starts anew, with its warm-up.", folder)
        return None
    return state.read(folder, config, discriminator)


def host_count(folder: Path) -> int:
    """Return the optimizer step at which the host goes on counting: its LoRA trainers keep it in a state; 0 for the others."""
    try:
        return int(json.loads((folder / HOST_COUNT).read_text(encoding="utf-8"))["current_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def steps_left(args: argparse.Namespace, counted: int, batches_of_epoch: Callable[[], int], processes: int = 1) -> int:
    """Return how many optimizer steps the host will make: its own arithmetic.

    Its LoRA trainers go on with the epoch that a state was saved in. With `--skip_until_initial_step` they leave out the
    batches of that epoch which are done; without, they begin the epoch anew, and count `--max_train_steps` from 0.

    Args:
        args: the host's; its --max_train_steps holds what --max_train_epochs and the data make of it.
        counted: what `host_count` found in the state, which --initial_step and --initial_epoch overrule.
        batches_of_epoch: says how many there are in one process; asked where the run does not begin at its beginning.
        processes: of the run.
    """
    total, accumulation = int(args.max_train_steps), int(args.gradient_accumulation_steps)
    step, epoch = getattr(args, "initial_step", None), getattr(args, "initial_epoch", None)
    if step is None and epoch is None and not counted:
        return total
    batches = batches_of_epoch()
    initial = counted
    if step is not None:
        initial = int(step)
    elif epoch is not None:
        initial = (int(epoch) - 1) * ceil(batches / processes / accumulation)
    steps_of_epoch = ceil(batches / accumulation)
    epochs = ceil(total / steps_of_epoch)
    if not initial or not getattr(args, "skip_until_initial_step", False):
        return min(total, max(0, epochs - initial // steps_of_epoch) * steps_of_epoch)
    begun = initial * accumulation // steps_of_epoch  # in batches over steps, as the host divides them
    skipped = initial * accumulation - begun * batches
    rest = ceil((batches - max(0, skipped)) / accumulation) + (epochs - begun - 1) * steps_of_epoch
    return max(0, min(total - skipped, rest))


def load_heads(path: str, config: DiscriminatorConfig, discriminator: Discriminator) -> None:
    """Load heads that were trained elsewhere (`--adt_disc_weights`); counter, optimizer and balance start anew.

    Raises:
        ConfigError: the file does not fit.
    """
    try:
        state.restore_heads(discriminator, state.read(Path(path), config, discriminator))
    except state.StateError as error:
        raise ConfigError(f"--adt_disc_weights: {error}") from error
