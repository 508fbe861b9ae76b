"""Packages of which a build can be installed that does not fit the others."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from adt_plugin.core.errors import ConfigError


def check_torchvision() -> None:
    """Find a torchvision of another build than torch, with which transformers and diffusers fail to import what has no fault.

    Raises:
        ConfigError: there is one; a Python without torchvision is fine.
    """
    try:
        import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise ConfigError(_sentence(error)) from error
    except Exception as error:  # whatever a broken build raises
        raise ConfigError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    try:
        name = f"torchvision {version('torchvision')}"
    except PackageNotFoundError:
        name = "torchvision"
    return (
        f"{name} cannot be imported ({reason}), and transformers and diffusers import it: install the build that belongs to "
        "your torch; adt doctor looks at the whole environment."
    )
