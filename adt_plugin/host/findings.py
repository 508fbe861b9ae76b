"""The parts of a run, which the host makes one by one, in an order that differs from trainer to trainer."""

from __future__ import annotations

from typing import Any

from adt_plugin.host.seams import SeamError


class Findings:
    """What the host has brought so far, by name: its accelerator, its denoiser, and so on."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def bring(self, name: str, value: Any) -> None:
        """Take in a part; a later one of the same name takes its place."""
        self._found[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Any:
        """Return a part.

        Raises:
            SeamError: the host has not brought it.
        """
        if name not in self._found:
            raise SeamError(f"{name} was needed before sd-scripts had made it")
        return self._found[name]

    def get(self, name: str) -> Any:
        """Return a part, or None where the host has not brought it."""
        return self._found.get(name)
