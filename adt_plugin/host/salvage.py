"""What is worth keeping of a run whose numbers have gone wrong: nothing that is not finite is offered to go on from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open  # type: ignore[attr-defined]
from torch import Tensor

from adt_plugin.core.run.state import TENSORS
from adt_plugin.host.deepspeed import engine_of

STOPPED = "adt-stopped-state"
"""The end of the name of the state that the plugin saves itself."""

PICKLED = (".ckpt", ".pt")
"""Formats of the host's files whose reading runs what is in them."""

MAKING_STATES = "--save_state makes some; DeepSpeed's are not looked into"
"""What to do where there is none."""


def carried_on(accelerator: Any, own: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield what a run carries from step to step: trained weights, all that the optimizers' states hold, what the plugin has.

    Args:
        own: the tensors of the plugin's half of a state.
    """
    for optimizer in accelerator._optimizers:
        yield from (parameter for group in optimizer.param_groups for parameter in group["params"])
        yield from tensors_in(optimizer.state_dict())
    engine = engine_of(accelerator)
    if engine is not None:  # its optimizer holds a part of the weights in each process; in the model every process has all
        yield from (parameter for parameter in engine.module.parameters() if parameter.requires_grad)
    yield from own


def tensors_in(saved: Any) -> Iterator[Tensor]:
    """Yield the tensors of an optimizer's state, however deep they lie, and as tensors its plain numbers that are NaN.

    A plain number that is infinite may be a setting (Prodigy's `growth_rate`).
    """
    if isinstance(saved, Tensor):
        yield saved
    elif isinstance(saved, Mapping):
        yield from tensors_in(list(saved.values()))
    elif isinstance(saved, list | tuple):
        for each in saved:
            yield from tensors_in(each)
    elif isinstance(saved, float) and saved != saved:
        yield torch.tensor(saved)


def count_unsound(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Return how many tensors hold a number that is not finite, and how many there are."""
    sound = [_all_finite(tensor).cpu() for tensor in tensors if tensor.is_floating_point()]
    return sum(not flag for flag in sound), len(sound)


def _all_finite(tensor: Tensor) -> Tensor:
    """Return whether all numbers are finite, as a tensor; float8 has no such question of its own."""
    return (tensor if tensor.dtype.itemsize > 1 else tensor.float()).isfinite().all()


def last_finite_state(folder: Path, name: str) -> Path | None:
    """Return the newest of the host's state folders of this run whose weights and moments are finite, or None.

    DeepSpeed pickles the weights of its states, beside which only the plugin's own file could be looked into.
    """
    states = (path for path in _saved(folder, name, "-state") if path.is_dir())
    return _newest(states, _finite_state)


def last_finite_checkpoint(folder: Path, name: str) -> Path | None:
    """Return the newest file that the host has saved of this run and that is finite; None where there is none."""
    return _newest(_saved(folder, name, ".safetensors"), _finite_file)


def not_looked_into(folder: Path, name: str) -> list[Path]:
    """Return what the host has saved of this run in other formats, the newest first: pickles and diffusers folders."""
    pickles = [path for ending in PICKLED for path in _saved(folder, name, ending) if path.is_file()]
    folders = [path for path in _saved(folder, name, "") if (path / "model_index.json").is_file()]
    return sorted([*pickles, *folders], key=_age)


def _saved(folder: Path, name: str, ending: str) -> Iterator[Path]:
    """Yield what the host has saved under a run's name: at its end, after an epoch, after a step; not what begins alike."""
    pattern = re.compile(rf"{re.escape(name)}(-\d+|-step\d+)?{re.escape(ending)}")
    return (path for path in folder.iterdir() if pattern.fullmatch(path.name))


def _newest(paths: Iterable[Path], is_finite: Callable[[Path], bool]) -> Path | None:
    """Return the newest that is finite; older ones, which may be gigabytes, are then not read."""
    return next(filter(is_finite, sorted(paths, key=_age)), None)


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _finite_state(folder: Path) -> bool:
    """Return whether a state has weights, and they and the optimizers' moments can be read and are finite.

    Weights that are pickled are not looked into.
    """
    files, moments = list(folder.glob("*.safetensors")), folder.glob("optimizer*.bin")
    has_weights = any(path.name != TENSORS for path in files)
    return has_weights and all(map(_finite_file, files)) and all(map(_finite_moments, moments))


def _finite_file(path: Path) -> bool:
    opened: Any = safe_open
    try:
        with opened(path, framework="pt") as file:
            tensors = (file.get_tensor(name) for name in file.keys())  # noqa: SIM118
            return all(bool(_all_finite(tensor)) for tensor in tensors if tensor.is_floating_point())
    except (OSError, SafetensorError):
        return False


def _finite_moments(path: Path) -> bool:
    """Return whether an optimizer's state, as accelerate saves it, can be read without running code, and is finite.

    Of 8-bit moments the scales of their blocks are floating-point numbers.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return not count_unsound(tensors_in(saved))[0]
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError):
        return False


def advice(unsound: int, tensors: int, folder: Path, name: str, learning_rate: str) -> str:
    """Word what is left of a run whose weights are not finite, and what to change before it goes on.

    Args:
        learning_rate: as the run has it.
    """
    state = last_finite_state(folder, name)
    left = [
        f"the last finite state is {state} (--resume)" if state else f"there is no finite state ({MAKING_STATES})",
        _file_left(folder, name),
    ]
    return (
        f"{unsound} of {tensors} tensors of the run are not finite any more, so no state was saved to go on from; "
        f"{' and '.join(left)}. Before you go on, lower --learning_rate (it is {learning_rate}) or --adt_weight."
    )


def _file_left(folder: Path, name: str) -> str:
    """Word which file is left, or that those there are were not looked into."""
    checkpoint, others = last_finite_checkpoint(folder, name), not_looked_into(folder, name)
    if checkpoint:
        return f"the last finite file is {checkpoint} (--network_weights for a LoRA)"
    if others:
        return (
            f"whether {others[0]} or one from before it is finite is not known: files that are not .safetensors are not "
            "looked into (--save_model_as safetensors saves such that are)"
        )
    return "no finite file was saved"
