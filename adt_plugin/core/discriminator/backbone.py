"""The frozen backbone: a vision transformer's patch tokens as feature maps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.config import ConfigError


class FrozenBackbone(nn.Module):
    """A feature extractor that nothing can train.

    The network is no submodule: `.train()`, `.requires_grad_(True)`, `.parameters()` and `.state_dict()` of this module
    or of any parent do not reach it, so it is neither trained nor saved. `.to()` does reach it.

    Args:
        network: `images (B, C, H, W) in [-1, 1] -> [features (B, C_i, h_i, w_i), ...]`.
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
        self._network._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps in float32, differentiable with respect to the images only."""
        dtype = next((p.dtype for p in self._network.parameters()), images.dtype)
        return [features.float() if dtype != torch.float64 else features for features in self._network(images.to(dtype))]


class TokenGrids(nn.Module):
    """A transformers vision model whose chosen blocks' patch tokens are laid out as grids `(B, C, h, w)`.

    Args:
        model: any vision transformer with hidden states (DINOv2 with and without registers, ViT, SigLIP, CLIP).
        mean, std: per-channel normalisation of images in [0, 1], from the model's own processor.
        blocks: block numbers, 1 is the first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float], blocks: Sequence[int]) -> None:
        super().__init__()
        self.model, self.blocks = model, list(blocks)
        self.patch_size: int = model.config.patch_size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        takes_any_size = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.extra: dict[str, Any] = {"interpolate_pos_encoding": True} if takes_any_size else {}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `(B, 3, H, W)` in [-1, 1], H and W multiples of the patch size."""
        pixels = ((images + 1) / 2 - self.mean) / self.std
        states = self.model(pixel_values=pixels, output_hidden_states=True, **self.extra).hidden_states
        height, width = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        return [self._grid(states[block], height, width) for block in self.blocks]

    @staticmethod
    def _grid(tokens: Tensor, height: int, width: int) -> Tensor:
        patches = tokens[:, -height * width :]  # class and register tokens come first
        return patches.transpose(1, 2).reshape(len(tokens), -1, height, width)


def load_backbone(name: str, blocks: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> FrozenBackbone:
    """Load a vision transformer by hub name or local folder (safetensors only, no code from the hub).

    Args:
        blocks: block numbers from 1; None takes four, evenly spaced, the last one included.
        dtype: of its weights and arithmetic.

    Raises:
        ConfigError: it cannot be loaded, is not a vision transformer of square patches, or lacks a chosen block.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        # Said explicitly: left out, transformers asks on the terminal whether to run a model's own code.
        processor = AutoImageProcessor.from_pretrained(name, use_fast=False, trust_remote_code=False)
        model = AutoModel.from_pretrained(name, torch_dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        where = "the folder" if Path(name).exists() else "it: without network access pass a local folder"
        reason = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"--adt_backbone {name} brings code of its own, which is never run: use a model that transformers knows."
            ) from error
        raise ConfigError(f"--adt_backbone {name} could not be loaded, check {where} ({reason}).") from error
    model = getattr(model, "vision_model", model)  # CLIP and SigLIP carry a text half
    depth, patch_size = getattr(model.config, "num_hidden_layers", None), getattr(model.config, "patch_size", None)
    one_width = not hasattr(model.config, "depths")  # hierarchical networks merge patches on the way
    if not (one_width and isinstance(depth, int) and isinstance(patch_size, int)):
        raise ConfigError(
            f"--adt_backbone {name} is a {type(model).__name__}, not a vision transformer with square patches: use a DINOv2."
        )
    if blocks is None:
        blocks = four_blocks(depth)
    if max(blocks) > depth:
        raise ConfigError(f"--adt_blocks asks for block {max(blocks)}, but {name} has {depth}: choose from 1 to {depth}.")
    network = TokenGrids(model, processor.image_mean, processor.image_std, blocks).to(dtype)
    return FrozenBackbone(network, [model.config.hidden_size] * len(blocks), patch_size, processor_size(processor))


def four_blocks(depth: int) -> list[int]:
    """Numbers of four blocks, evenly spaced, the last one included."""
    return [max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)]


def processor_size(processor: Any) -> int | None:
    """The side of the images that an image processor makes, in pixels: of its crop if it crops, else of its resizing."""
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    sizes = [size for size in (crop, getattr(processor, "size", None)) if size]
    return next((int(size[key]) for size in sizes for key in ("height", "shortest_edge") if key in size), None)
