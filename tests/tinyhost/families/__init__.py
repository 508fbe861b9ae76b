"""One module per model family of the host. To add one, write a module with these names:

`SCRIPTS`
    The host's training scripts that train a model of this family unless told otherwise.
`NETWORK_MODULE`
    The host's default network module of the family, such as `networks.lora`.
`AFTER_IMPORT`
    Host module name -> function that shrinks it, called in the host's process right after that module has been executed.
`write(folder)`
    Write a random checkpoint that the shrunken host loads, with whatever belongs to it, and return its path. Called in the
    test's process.
`write_tokenizers(folder)`
    Fill the folder that is handed over as `--tokenizer_cache_dir`, and as the cache of the Hugging Face Hub.
`arguments(folder)`
    Further host arguments that every script of the family needs to train what `write(folder)` has written.

The module is loaded in the host's process, too: at its top it imports the standard library and modules like itself only.
"""

from __future__ import annotations

import os
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """The modules of this package."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def load(name: str) -> ModuleType:
    """The module of one family."""
    return import_module(f"{__name__}.{name}")


def depth() -> int:
    """Blocks of a kind in the tiny denoisers, read when a family is loaded: two, unless a test needs more."""
    return int(os.environ.get("TINYHOST_DEPTH", "2"))


def file_arguments(folder: Path, *names: str) -> tuple[str | Path, ...]:
    """`--<name> <folder>/<name>.safetensors` for every name."""
    return tuple(part for name in names for part in (f"--{name}", folder / f"{name}.safetensors"))


def family_of(script: str) -> str:
    """The family that a script of the host trains. Raises ValueError for a script that no family knows."""
    for name in names():
        if script in load(name).SCRIPTS:
            return name
    raise ValueError(f"no family of the test kit trains with {script}")
