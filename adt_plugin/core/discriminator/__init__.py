"""The discriminator: frozen backbone, light trainable heads, pair score by similarity, differentiable augmentation."""

from adt_plugin.core.discriminator.backbone import FrozenBackbone, load_backbone
from adt_plugin.core.discriminator.discriminator import Discriminator, PairFeatures

__all__ = ["Discriminator", "FrozenBackbone", "PairFeatures", "load_backbone"]
