"""The discriminator: frozen backbone, light trainable heads, pair score by similarity, differentiable augmentation."""

from adt_plugin.discriminator.backbone import FrozenBackbone, load_backbone
from adt_plugin.discriminator.siamese import Discriminator, Observation

__all__ = ["Discriminator", "FrozenBackbone", "Observation", "load_backbone"]
