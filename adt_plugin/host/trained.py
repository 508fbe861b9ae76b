"""What the host trains: masks and weights of the images in a batch, as its data loader gives it, and text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from adt_plugin.host.seams import Function, Undo, patch_attribute

Data = Mapping[str, Any]
"""A batch of the host, by the names of its parts."""

PRESERVED = "diff_output_preservation"
"""The custom attribute of images whose output is to stay that of the untrained model (sd-scripts from v0.10 on)."""


def mask_of(data: Data) -> Tensor | None:
    """Return the mask `(B, 1, H, W)` in [0, 1] by which the host multiplies its loss, chosen as `apply_masked_loss` does."""
    images = data.get("conditioning_images")
    if images is not None:
        red: Tensor = images[:, :1]
        return (red.float() / 2 + 0.5).clamp(0, 1)
    masks = data.get("alpha_masks")
    return None if masks is None else masks.float().unsqueeze(1)


def weights_of(data: Data) -> Tensor:
    """Return the weights `(B,)` of the images in the host's loss; 0 for those whose output is to be preserved."""
    weights: Tensor = data["loss_weights"]
    preserved = [bool(attributes.get(PRESERVED)) for attributes in data.get("custom_attributes", [{}] * len(weights))]
    return weights * torch.tensor(preserved, device=weights.device).logical_not()


def caption_of(data: Data) -> str:
    """Return the caption of the batch's first image, as dropout and shuffling have left it; empty where there is none."""
    captions = data.get("captions") if isinstance(data, Mapping) else None
    return str(captions[0]) if captions else ""


def on_data(loader: DataLoader[Any], listener: Any) -> Undo:
    """Hand every batch of the loader, and of others of its class, to the listener before the host has it.

    Accelerate gives each loader a class of its own, and makes new loaders where an epoch begins in its middle: the class that
    walks the data is patched.
    """
    owner = next(kind for kind in type(loader).__mro__ if "__iter__" in vars(kind))

    def around_iter(original: Function) -> Function:
        def walk(self: Any) -> Iterator[Any]:
            for data in original(self):
                listener(data)
                yield data

        return walk

    return patch_attribute(owner, "__iter__", around_iter)


def of_text(module: Any) -> Iterator[nn.Parameter]:
    """Yield the trained parameters of text encoders: of one that is trained as a whole, or of a network's part for them."""
    parts = [module] if isinstance(module, PreTrainedModel) else getattr(module, "text_encoder_loras", None) or []
    for part in parts:
        yield from (parameter for parameter in part.parameters() if parameter.requires_grad)
