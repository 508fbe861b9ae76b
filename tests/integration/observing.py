"""The start of a process that runs a script of the host under an observer: `OBSERVER RESULT SCRIPT [ARGUMENTS]`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import adt_plugin


def run_observed(install: Callable[[Path], object]) -> Path:
    """Run the script with its arguments, the plugin registered and the observer installed.

    Args:
        install: puts the observer in place; it is given the file that the observer's result goes to.

    Returns:
        That file.
    """
    result, script, *arguments = sys.argv[1:]
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    adt_plugin.register()
    install(Path(result))
    runpy.run_path(script, run_name="__main__")
    return Path(result)
