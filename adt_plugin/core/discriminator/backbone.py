"""The frozen backbone: a vision transformer's patch tokens as feature maps. Where it comes from: `loaders.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.discriminator.loaders import DEFAULT_SCHEME, LOADERS, FeatureNetwork, TokenGrids, four_blocks
from adt_plugin.core.errors import ConfigError

__all__ = ["FeatureNetwork", "FrozenBackbone", "TokenGrids", "four_blocks", "load_backbone", "split_scheme"]


class FrozenBackbone(nn.Module):
    """A feature extractor that nothing can train.

    The network is no submodule: `.train()`, `.requires_grad_(True)`, `.parameters()` and `.state_dict()` of this module
    or of any parent do not reach it, so it is neither trained nor saved. `.to()` does reach it.

    Args:
        network: any module `images (B, C, H, W) in [-1, 1] -> [features (B, C_i, h_i, w_i), ...]`.
        channels: C_i of each feature map.
        patch_size: images are given sizes that are multiples of this many pixels.
        image_size: side in pixels of the square images it was made for; None if it has no preference.
    """

    _network: nn.Module

    def __init__(self, network: nn.Module, channels: Sequence[int], patch_size: int = 1, image_size: int | None = None) -> None:
        super().__init__()
        network.eval().requires_grad_(False)
        object.__setattr__(self, "_network", network)
        self.channels = list(channels)
        self.patch_size, self.image_size = patch_size, image_size

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenBackbone:
        network: Any = self._network  # torch leaves `_apply` untyped
        network._apply(fn)
        own: Any = super()
        own._apply(fn, recurse)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature maps in float32 (float64 for a float64 network), differentiable in the images only."""
        dtype = next((p.dtype for p in self._network.parameters()), images.dtype)
        return [features.float() if dtype != torch.float64 else features for features in self._network(images.to(dtype))]


def load_backbone(name: str, blocks: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> FrozenBackbone:
    """Load a vision transformer by the value of `--adt_backbone`, and freeze it.

    Args:
        name: `scheme:name` with a scheme of `LOADERS`; any other value is a hub name or local folder for transformers.
        blocks: block numbers from 1; None takes four, evenly spaced, the last one included.
        dtype: of its weights and arithmetic.

    Raises:
        ConfigError: it cannot be loaded, is not a vision transformer of square patches, or lacks a chosen block.
        TypeError: a loader that was added to the table returned no torch module.
    """
    scheme, rest = split_scheme(name)
    network = LOADERS[scheme](rest, blocks, dtype)
    if not isinstance(network, nn.Module):
        raise TypeError(f"the loader {scheme!r} returned a {type(network).__name__}, not a torch module")
    return FrozenBackbone(network, network.channels, network.patch_size, network.image_size)


def split_scheme(name: str) -> tuple[str, str]:
    r"""Return `(scheme, name for its loader)`; what has no known scheme, such as C:\models\dino, is for transformers.

    Raises:
        ConfigError: a known scheme is followed by nothing.
    """
    scheme, colon, rest = name.partition(":")
    if not colon or scheme not in LOADERS:
        return DEFAULT_SCHEME, name
    if not rest:
        raise ConfigError(f"--adt_backbone {name} names no model: write {scheme}:name.")
    return scheme, rest
