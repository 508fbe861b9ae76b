"""Adversarial Diffusion Tuning (arXiv 2504.11423) as a plugin for kohya-ss/sd-scripts.

Importing this package costs next to nothing: whatever needs torch is loaded when one of its names is first used.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["ADTConfig", "AdversarialTurn", "Discriminator", "FrozenBackbone", "build_sampler", "load_backbone", "register"]


def register() -> None:
    """Connect the plugin to sd-scripts: the one line that a fork adds where it cannot rely on the start-up hook.

    Call it before the argument parser is built. A second call changes nothing, and `ADT_PLUGIN_DISABLE=1` turns it off.
    """
    from adt_plugin.host import activation

    activation.install()


# A public name is written down three times: in __all__, for type checkers, and where it is found on first use.
if TYPE_CHECKING:
    from adt_plugin.core.config import ADTConfig
    from adt_plugin.core.diffusion.samplers import build_sampler
    from adt_plugin.core.discriminator import Discriminator, FrozenBackbone, load_backbone
    from adt_plugin.core.turn import AdversarialTurn
else:
    _LAZY = {
        "ADTConfig": "adt_plugin.core.config",
        "AdversarialTurn": "adt_plugin.core.turn",
        "Discriminator": "adt_plugin.core.discriminator",
        "FrozenBackbone": "adt_plugin.core.discriminator",
        "load_backbone": "adt_plugin.core.discriminator",
        "build_sampler": "adt_plugin.core.diffusion.samplers",
    }

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
