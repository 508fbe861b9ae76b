"""Waiting for the host: a meta-path finder that hooks in as soon as sd-scripts' own modules have been executed.

Three ways lead here: the hook in the `.pth` file beside this module, which asks for nothing until one of the watched
modules is imported; `python -m adt_plugin`; and `adt_plugin.register()`. Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WATCHED = ("library.args", "library.train_util")
"""The host's modules that define the training arguments: v0.11, and everything before. The `.pth` file names them too."""


class HostFinder:
    """Finds nothing itself: it lets the other finders find a watched module and acts once that has been executed."""

    def __init__(self) -> None:
        self.searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a watched module, its loader followed by `hook_in`; None for every other name."""
        if fullname not in WATCHED or fullname in self.searching:
            return None
        self.searching.add(fullname)
        try:
            specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
            spec = next((spec for spec in specs if spec is not None), None)
        finally:
            self.searching.discard(fullname)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            follow_execution(spec.loader)
        return spec


def follow_execution(loader: Any) -> None:
    """Run `hook_in` after this loader instance has executed its module."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        hook_in()

    loader.exec_module = exec_module


def hook_in() -> None:
    """Patch the entry points of the host's loaded modules; a failure is said and leaves the host as it is."""
    try:
        from adt_plugin.host.entry import Entry

        finder = next(finder for finder in sys.meta_path if isinstance(finder, HostFinder))
        if not hasattr(finder, "entry"):
            finder.entry = Entry()
        finder.entry.install()
    except Exception as error:
        print(f"adt_plugin could not hook into sd-scripts, so --adt is not available: {error}", file=sys.stderr)


def install() -> HostFinder:
    """Watch for the host's modules, and hook into those that are loaded already. Idempotent."""
    finder = next((finder for finder in sys.meta_path if isinstance(finder, HostFinder)), None)
    if finder is None:
        finder = HostFinder()
        if os.environ.get("ADT_PLUGIN_DISABLE") == "1":
            return finder
        sys.meta_path.insert(0, finder)
    if any(name in sys.modules for name in WATCHED):
        hook_in()
    return finder
