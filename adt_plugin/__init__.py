"""Adversarial Diffusion Tuning (arXiv 2504.11423) as a plugin for kohya-ss/sd-scripts.

Importing this package costs next to nothing: the start-up hook imports it in every Python process of the environment,
so everything that needs torch is loaded on first use.
"""

__version__ = "0.1.0"
__all__ = ["ADTConfig", "AdversarialTurn", "Discriminator", "FrozenBackbone", "build_scheduler", "register"]

_LAZY = {
    "ADTConfig": "adt_plugin.core.config",
    "AdversarialTurn": "adt_plugin.core.turn",
    "Discriminator": "adt_plugin.core.discriminator",
    "FrozenBackbone": "adt_plugin.core.discriminator",
    "build_scheduler": "adt_plugin.core.diffusion.sampling",
}


def register() -> None:
    """Hook into sd-scripts explicitly: the one line for a fork that does not rely on the start-up hook.

    Call it before the argument parser is built. Idempotent; `ADT_PLUGIN_DISABLE=1` turns it off as well.
    """
    from adt_plugin.host import activation

    activation.install()


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
