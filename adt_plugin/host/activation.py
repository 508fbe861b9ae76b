"""Waiting for the host: a meta-path finder that hooks in as soon as sd-scripts' own modules have been executed.

Three ways lead here: the start-up hook in `adt_plugin_hook.py`, which loads nothing until one of the watched modules is
imported; `python -m adt_plugin`; and `adt_plugin.register()`. Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from adt_plugin_hook import WATCHED

if TYPE_CHECKING:
    from adt_plugin.host.entry import Entry


class HostFinder:
    """Finds nothing itself: it lets the other finders find a watched module and acts once that has been executed.

    What a process remembers of the host hangs on its one finder, which `install` makes.
    """

    def __init__(self) -> None:
        self.searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a watched module, its loader followed by `hook_in`; None for every other name."""
        if fullname not in WATCHED or fullname in self.searching:
            return None
        self.searching.add(fullname)
        try:
            specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
            spec = next((spec for spec in specs if spec is not None), None)
        finally:
            self.searching.discard(fullname)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            follow_execution(spec.loader, self.hook_in)
        return spec

    @cached_property
    def entry(self) -> Entry:
        """Where the plugin enters this process; loaded when the host is there."""
        from adt_plugin.host.entry import Entry

        return Entry()

    def hook_in(self) -> None:
        """Patch the entry points of the host's loaded modules; report a failure in one line and leave the host as it is."""
        try:
            self.entry.install()
        except Exception as error:
            print(f"adt_plugin could not hook into sd-scripts, so --adt is not available: {error}", file=sys.stderr)


def follow_execution(loader: Any, then: Callable[[], None]) -> None:
    """Make this instance of a loader call `then` each time it has executed its module."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        then()

    loader.exec_module = exec_module


def install() -> HostFinder:
    """Watch for the host's modules, and hook into those that are loaded already. Idempotent.

    Returns:
        The finder of this process; one that watches nothing where `ADT_PLUGIN_DISABLE=1`.
    """
    finder = next((finder for finder in sys.meta_path if isinstance(finder, HostFinder)), None)
    if finder is None:
        finder = HostFinder()
        if os.environ.get("ADT_PLUGIN_DISABLE") == "1":
            return finder
        sys.meta_path.insert(0, finder)
    if any(name in sys.modules for name in WATCHED):
        finder.hook_in()
    return finder
