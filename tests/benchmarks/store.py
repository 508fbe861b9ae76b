"""The store of finished measurements: what is there is never run again, unless a setting has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from adt_plugin.core.run.files import write_atomically

Result = dict[str, Any]
"""JSON values by name."""


class CellStore:
    """Results by label in one JSON file, each with a digest of all the settings that it was measured with.

    Several processes may share the file: every write takes in what the others have finished.

    Args:
        path: of the file; made when the first result is there.
        group: under which these results stand, such as a device's name.
    """

    def __init__(self, path: Path, group: str = "cells") -> None:
        self.path, self.group = path, group

    def groups(self) -> dict[str, dict[str, Any]]:
        """Return everything in the file: group -> label -> `{"settings": digest, "result": result}`."""
        if not self.path.exists():
            return {}
        found: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def results(self) -> dict[str, dict[str, Result]]:
        """Return everything in the file without the digests: group -> label -> result."""
        return {group: {label: cell["result"] for label, cell in cells.items()} for group, cells in self.groups().items()}

    def get(self, label: str, settings: Any) -> Result | None:
        """Return the stored result, or None where there is none that was measured with these settings."""
        cell = self.groups().get(self.group, {}).get(label)
        return cell["result"] if cell is not None and cell["settings"] == digest(settings) else None

    def get_or_run(self, label: str, settings: Any, run: Callable[[], Result]) -> tuple[Result, bool]:
        """Return the stored result, or the one that `run` measures, stored; and whether it was measured now."""
        stored = self.get(label, settings)
        if stored is not None:
            return stored, False
        result = run()
        groups = self.groups()
        groups.setdefault(self.group, {})[label] = {"settings": digest(settings), "result": result}
        write_atomically(self.path, json.dumps(groups, indent=1) + "\n")
        return result, True


def run_of(label: str) -> str:
    """Return the run of a label such as `heldout: ADT, seed 3`: `ADT`."""
    return label.partition(": ")[2].rpartition(", seed ")[0]


def seed_of(label: str) -> int:
    """Return the seed of a label such as `heldout: ADT, seed 3`: 3."""
    return int(label.rpartition(" ")[2])


def only_group(path: Path) -> dict[str, Result]:
    """Return label -> result of a file of one group, such as a published one. Raises ValueError where it has another number."""
    ((_, results),) = CellStore(path).results().items()
    return results


def by_run(results: dict[str, Result], kind: str = "") -> dict[str, list[Result]]:
    """Sort label -> result into run -> its results in the order of their seeds, so that those of two runs are pairs.

    Args:
        kind: what stands before the colon of the labels that are sorted, such as `heldout`; all are without it.
    """
    found: dict[str, list[Result]] = {}
    for label in sorted((label for label in results if kind in ("", label.partition(": ")[0])), key=seed_of):
        found.setdefault(run_of(label), []).append(results[label])
    return found


LATER = {"diversity": 0.0}
"""Options that are younger than published results, and the value with which a run is what it was before they came."""


def options_but(config: Any, unread: Collection[str]) -> tuple[tuple[str, Any], ...]:
    """Return the fields of a dataclass of options by name, for a digest, without those that change no figure."""
    read = ((spec.name, getattr(config, spec.name)) for spec in fields(config) if spec.name not in unread)
    return tuple(option for option in read if not is_as_before(option))


def is_as_before(option: tuple[str, Any]) -> bool:
    """Return whether an option, name and value, is a young one that is off: no part of a digest."""
    return option in LATER.items()


def digest(settings: Any) -> str:
    """Return sixteen hex digits that change with any part of `settings`.

    Args:
        settings: dataclasses, functions by name, and plain values at any depth.

    Raises:
        TypeError: a function has no name of its own, as lambdas and partial functions.
    """
    return hashlib.sha256("\n".join(_parts(settings)).encode()).hexdigest()[:16]


def _parts(settings: Any) -> Iterator[str]:
    """Write settings out; functions by their names, since their addresses change from run to run."""
    if hasattr(settings, "__dataclass_fields__"):
        yield type(settings).__name__
        for name in settings.__dataclass_fields__:
            yield name
            yield from _parts(getattr(settings, name))
    elif isinstance(settings, (list, tuple)):
        for part in settings:
            yield from _parts(part)
        yield "end"
    elif callable(settings):
        if "<" in (name := getattr(settings, "__qualname__", "<no name>")):
            raise TypeError(f"a function without a name of its own cannot be part of a digest: {settings!r}")
        yield f"{settings.__module__}.{name}"
    else:
        yield repr(settings)
