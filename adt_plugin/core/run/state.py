"""The state of a run's turns on disk: one safetensors file, and one JSON for people.

The safetensors file holds everything, with the manifest in its header, so that it is either whole or refused. Both files are
written under another name, flushed and renamed: whoever kills the process finds the old state or the new one. Nothing is
ever unpickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open  # type: ignore[attr-defined]
from safetensors.torch import save
from torch import Tensor

from adt_plugin.core.config import DiscriminatorConfig, without_folder
from adt_plugin.core.diffusion.balance import EMA
from adt_plugin.core.discriminator import Discriminator
from adt_plugin.core.distributed import rank
from adt_plugin.core.errors import AdtError
from adt_plugin.core.run.files import write_atomically
from adt_plugin.core.turn import AdversarialTurn

FORMAT = "1"
TENSORS, MANIFEST = "adt_state.safetensors", "adt_state.json"
HEADS, MOMENTS, BALANCE, GENERATORS, HISTORY = "heads.", "moments.", "balance.", "generators.", "history."
"""What the names of the tensors begin with."""

IDENTITY = {"backbone": "backbone", "blocks": "blocks", "kind": "disc_type", "width": "disc_width"}
"""Fields of a manifest that have to agree -> the options that they come from."""


class StateError(AdtError, ValueError):
    """A state that cannot be used; the message says which, why, and the way out."""


@dataclass(frozen=True)
class Manifest:
    """What a state belongs to, and how far its run had come.

    Attributes:
        format: of the file.
        backbone, blocks, kind, width: of the discriminator; a local backbone by its folder's name.
        turns: made so far.
        step: the optimizer step that comes next, from 0.
    """

    format: str
    backbone: str
    blocks: str
    kind: str
    width: str
    turns: int
    step: int

    @classmethod
    def from_config(cls, config: DiscriminatorConfig, turns: int = 0, step: int = 0) -> Manifest:
        """Return the manifest of a run with these options, so many turns and steps old."""
        identity = {field: str(getattr(config, option)) for field, option in IDENTITY.items()}
        identity["backbone"] = without_folder(identity["backbone"])
        return cls(format=FORMAT, turns=turns, step=step, **identity)


@dataclass(frozen=True)
class State:
    """A state in memory: all its tensors by name, on the CPU, and its manifest."""

    tensors: dict[str, Tensor]
    manifest: Manifest

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by their names without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def capture(turn: AdversarialTurn, config: DiscriminatorConfig, step: int = 0) -> State:
    """Copy everything that a turn carries over to the next: heads and their AdamW moments, history, balance, generators.

    Args:
        config: of the discriminator, to be recognised by.
        step: the optimizer step that comes next, from 0.
    """
    discriminator = turn.discriminator
    tensors = {HEADS + name: tensor for name, tensor in discriminator.state_dict().items()}
    for name, parameter in discriminator.named_parameters():
        moments = turn.optimizer.state.get(parameter, {})
        tensors |= {f"{MOMENTS}{name}.{moment}": tensor for moment, tensor in moments.items()}
    for name, ema in _averages(turn).items():
        if ema.total is not None and ema.correction is not None:
            tensors |= {f"{BALANCE}{name}.total": ema.total, f"{BALANCE}{name}.correction": ema.correction}
    tensors |= {GENERATORS + name: generator.get_state() for name, generator in _generators(turn).items()}
    tensors |= {HISTORY + name: tensor for name, tensor in turn.history.state_dict().items()}
    on_cpu = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return State(on_cpu, Manifest.from_config(config, turn.turns, step))


def restore(turn: AdversarialTurn, state: State) -> None:
    """Put a turn into a state that `read` has checked.

    The generators are those of the process that saved. Every other process draws from new ones, seeded by the run's seed,
    its rank and the turn; the path's draws are the same on all.
    """
    restore_heads(turn.discriminator, state)
    for name, parameter in turn.discriminator.named_parameters():
        moments = state.part(f"{MOMENTS}{name}.")
        if moments:
            turn.optimizer.state[parameter] = {
                moment: tensor.clone() if moment == "step" else tensor.to(parameter) for moment, tensor in moments.items()
            }
    for name, ema in _averages(turn).items():
        values = state.part(f"{BALANCE}{name}.")
        device = next(turn.discriminator.parameters()).device
        ema.total, ema.correction = (values[key].to(device) if key in values else None for key in ("total", "correction"))
    turn.history.load_state_dict(state.part(HISTORY))
    saved = state.part(GENERATORS)
    for offset, (name, generator) in enumerate(_generators(turn).items()):
        if rank() == 0 or name == "path":
            generator.set_state(saved[name])
        else:
            generator.manual_seed(turn.config.seed + 1_000_003 * (1 + rank()) + 31 * (1 + state.manifest.turns) + offset)
    turn.turns = state.manifest.turns


def restore_heads(discriminator: Discriminator, state: State) -> None:
    """Load the heads alone, with their statistics."""
    discriminator.load_state_dict(state.part(HEADS))


def write(state: State, folder: Path) -> None:
    """Write both files into a folder, replacing those of an earlier state."""
    manifest = json.dumps(asdict(state.manifest), indent=2)
    write_atomically(folder / TENSORS, save(state.tensors, metadata={"manifest": manifest}))
    write_atomically(folder / MANIFEST, manifest)


def read(path: Path, config: DiscriminatorConfig, discriminator: Discriminator) -> State:
    """Read a state and check that it fits the run.

    Args:
        path: the folder that `write` was given, or its safetensors file.

    Raises:
        StateError: it is missing, incomplete, of another format, or of another discriminator.
    """
    path = path / TENSORS if path.is_dir() else path
    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            found = json.loads((file.metadata() or {})["manifest"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            manifest = Manifest(**found)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise StateError(f"{path} is no whole discriminator state ({reason}): use an earlier one, or delete it.") from error
    state = State(tensors, manifest)
    _check_identity(path, manifest, config)
    _check_shapes(path, state, discriminator)
    return state


def _check_identity(path: Path, found: Manifest, config: DiscriminatorConfig) -> None:
    if found.format != FORMAT:
        raise StateError(f"{path} has format {found.format}, this plugin reads {FORMAT}: use the version that saved it.")
    expected = asdict(Manifest.from_config(config))
    for field, option in IDENTITY.items():
        saved = asdict(found)[field]
        if saved != expected[field]:
            raise StateError(
                f"{path} was saved with --adt_{option} {saved}, this run has {expected[field]}: "
                "use the same, or delete the file."
            )


def _check_shapes(path: Path, state: State, discriminator: Discriminator) -> None:
    saved = {name: tuple(tensor.shape) for name, tensor in state.part(HEADS).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in discriminator.state_dict().items()}
    if saved != expected:
        wrong = next(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
        raise StateError(
            f"{path} has other tensors than this discriminator ({wrong} is {saved.get(wrong)}, expected "
            f"{expected.get(wrong)}): use the backbone that it was saved with, or delete the file."
        )


def _averages(turn: AdversarialTurn) -> dict[str, EMA]:
    return {"diffusion": turn.balance.diffusion, "adversarial": turn.balance.adversarial}


def _generators(turn: AdversarialTurn) -> dict[str, torch.Generator]:
    return {"path": turn.path_generator, "noise": turn.noise_generator, "augment": turn.discriminator.generator}
