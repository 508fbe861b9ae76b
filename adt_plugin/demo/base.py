"""What the experiment starts from: the pretrained denoiser, the metric's classifiers and the discriminator's backbone."""

from __future__ import annotations

from dataclasses import dataclass

from adt_plugin.demo.models import Classifier, Judge, RotationNet, UNet
from adt_plugin.demo.weights import load_weights

BASES = 2
"""Denoisers that ship, trained alike from different seeds."""


@dataclass(frozen=True)
class Base:
    """The trained networks, frozen and in evaluation mode: a fine-tune copies `unet`."""

    unet: UNet
    classifier: Classifier
    judge: Judge
    backbone: RotationNet


def load_base(number: int = 0) -> Base:
    """Load the shipped networks with the denoiser of this number, from 0.

    Raises:
        FileNotFoundError: there is no such denoiser.
        ValueError: a file is damaged.
    """
    return Base(
        load_weights(f"unet{number}", UNet()),
        load_weights("metric", Classifier()),
        load_weights("judge", Judge()),
        load_weights("backbone", RotationNet()),
    )
