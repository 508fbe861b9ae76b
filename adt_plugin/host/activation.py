"""Waiting for the host: a meta-path finder that hooks in as soon as sd-scripts' own modules are imported.

Installed by the `.pth` file at every start of Python, by `python -m adt_plugin`, or by `adt_plugin.register()`. Standard
library only, and none of it that a bare interpreter has not loaded already.
"""

import os
import sys

WATCHED = ("library.args", "library.train_util")
"""The host's modules that define the training arguments: v0.11, and everything before."""


class HostFinder:
    """Finds nothing itself: it lets the other finders find a watched module and acts once that has been executed."""

    def __init__(self):  # noqa: ANN204
        self.searching = set()

    def find_spec(self, fullname, path=None, target=None):  # noqa: ANN001, ANN201
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


def follow_execution(loader):  # noqa: ANN001, ANN201
    """Run `hook_in` after this loader instance has executed its module."""
    execute = loader.exec_module

    def exec_module(module):  # noqa: ANN001, ANN202
        execute(module)
        hook_in()

    loader.exec_module = exec_module


def hook_in():  # noqa: ANN201
    """Patch the entry points of the host's loaded modules; a failure is said and leaves the host as it is."""
    try:
        from adt_plugin.host import entry

        entry.install()
    except Exception as error:
        print(f"adt_plugin could not hook into sd-scripts, so --adt is not available: {error}", file=sys.stderr)


def install():  # noqa: ANN201
    """Watch for the host's modules, and hook into those that are loaded already. Idempotent."""
    if os.environ.get("ADT_PLUGIN_DISABLE") == "1":
        return
    if not any(isinstance(finder, HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, HostFinder())
    if any(name in sys.modules for name in WATCHED):
        hook_in()
