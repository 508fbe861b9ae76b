"""What is worth keeping of a run whose numbers have gone wrong: nothing that is not finite is offered to go on from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open  # type: ignore[attr-defined]
from torch import Tensor

from adt_plugin.core.discriminator import Discriminator
from adt_plugin.core.run.state import TENSORS
from adt_plugin.host.deepspeed import engine_of

STOPPED = "adt-stopped-state"
"""The end of the name of the state that the plugin saves itself."""

MAKING_STATES = "--save_state makes some; DeepSpeed's are not looked into"
"""What to do where there is none."""


def carried_on(accelerator: Any, discriminator: Discriminator) -> Iterator[Tensor]:
    """Yield what a run carries from step to step: trained weights, the optimizers' moments, the discriminator's heads."""
    for optimizer in accelerator._optimizers:
        yield from (parameter for group in optimizer.param_groups for parameter in group["params"])
        for moments in optimizer.state.values():
            yield from (moment for moment in moments.values() if isinstance(moment, Tensor))
    engine = engine_of(accelerator)
    if engine is not None:  # its optimizer holds a part of the weights in each process; in the model every process has all
        yield from (parameter for parameter in engine.module.parameters() if parameter.requires_grad)
    yield from discriminator.parameters()


def count_unsound(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Return how many tensors hold a number that is not finite, and how many there are."""
    sound = [tensor.isfinite().all().cpu() for tensor in tensors if tensor.is_floating_point()]
    return sum(not flag for flag in sound), len(sound)


def last_finite_state(folder: Path, name: str) -> Path | None:
    """Return the newest of the host's state folders of this run whose saved weights are finite; None where there is none.

    DeepSpeed pickles the weights of its states, beside which only the plugin's own file could be looked into.
    """
    states = (path for path in _saved(folder, name, "-state") if path.is_dir())
    files = ((path, list(path.glob("*.safetensors"))) for path in states)
    return _newest(path for path, found in files if any(file.name != TENSORS for file in found) and _finite_files(found))


def last_finite_checkpoint(folder: Path, name: str) -> Path | None:
    """Return the newest file that the host has saved of this run and that is finite; None where there is none."""
    return _newest(path for path in _saved(folder, name, ".safetensors") if _finite_files([path]))


def _saved(folder: Path, name: str, ending: str) -> Iterator[Path]:
    """Yield what the host has saved under a run's name: at its end, after an epoch, after a step; not what begins alike."""
    pattern = re.compile(rf"{re.escape(name)}(-\d+|-step\d+)?{re.escape(ending)}")
    return (path for path in folder.iterdir() if pattern.fullmatch(path.name))


def _newest(paths: Iterable[Path]) -> Path | None:
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def _finite_files(files: list[Path]) -> bool:
    """Return whether there are files, and all can be read and are finite; pickled ones are not looked into."""
    return bool(files) and all(_finite_file(path) for path in files)


def _finite_file(path: Path) -> bool:
    opened: Any = safe_open
    try:
        with opened(path, framework="pt") as file:
            tensors = (file.get_tensor(name) for name in file.keys())  # noqa: SIM118
            return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())
    except (OSError, SafetensorError):
        return False


def advice(unsound: int, tensors: int, folder: Path, name: str, learning_rate: str) -> str:
    """Word what is left of a run whose weights are not finite, and what to change before it goes on.

    Args:
        learning_rate: as the run has it.
    """
    state, checkpoint = last_finite_state(folder, name), last_finite_checkpoint(folder, name)
    left = [
        f"the last finite state is {state} (--resume)" if state else f"there is no finite state ({MAKING_STATES})",
        f"the last finite file is {checkpoint} (--network_weights for a LoRA)" if checkpoint else "no finite file was saved",
    ]
    return (
        f"{unsound} of {tensors} tensors of the run are not finite any more, so no state was saved to go on from; "
        f"{' and '.join(left)}. Before you go on, lower --learning_rate (it is {learning_rate}) or --adt_weight."
    )
