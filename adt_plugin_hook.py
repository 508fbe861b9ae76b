"""The start-up hook: what the line in `adt_plugin.pth` runs at every start of Python.

Installing the plugin copies this file and the `.pth` file into the root of site-packages. It stands outside of the package so
that a package that is damaged or gone cannot disturb a Python that has no use for it. Nothing is imported here but `sys`.
"""

import sys

TYPE_CHECKING = False  # as type checkers read it; `typing` would have to be imported
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

WATCHED = ("library.args", "library.train_util")
"""Modules of sd-scripts that define the training arguments: since v0.11, and before."""


class AdtPluginHook:
    """A meta-path finder that does nothing until a watched module is imported, then loads the plugin and steps aside."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return what the plugin's own finder finds for a watched module, and None for every other name.

        A plugin that cannot be loaded costs one line on stderr; the host's module is then found as without the plugin.
        """
        if name not in WATCHED:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            from adt_plugin.host import activation

            return activation.install().find_spec(name, path, target)
        except Exception as error:
            print("adt_plugin could not be loaded, so --adt is not available:", error, file=sys.stderr)
            return None


def watch() -> None:
    """Put one hook on `sys.meta_path`, also where Python reads more than one `.pth` file of the plugin."""
    if not any(type(finder).__name__ == AdtPluginHook.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, AdtPluginHook())
