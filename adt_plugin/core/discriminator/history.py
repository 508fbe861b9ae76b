"""The features of the last turns, for further steps of the heads: a head step costs little, an unroll much.

Samples that the generator makes no more still teach the heads, and keep them from following its last move alone
(Shrivastava et al., arXiv 1612.07828).
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields

import torch
from torch import Tensor

from adt_plugin.core.discriminator.discriminator import Features, PairFeatures

IMAGES = tuple(field.name for field in fields(PairFeatures))
TURNS = 8
"""As many turns are kept (ours)."""


class FeatureHistory:
    """Pairs of the last turns, on the CPU and in bfloat16, so that they cost a device no memory."""

    def __init__(self, turns: int = TURNS) -> None:
        self.kept: deque[PairFeatures] = deque(maxlen=turns)

    def __len__(self) -> int:
        return len(self.kept)

    def add(self, features: PairFeatures) -> None:
        """Keep a turn's features; the oldest turn's are forgotten."""
        self.kept.append(_converted(features, torch.device("cpu"), torch.bfloat16))

    def draw(self, generator: torch.Generator, like: PairFeatures) -> PairFeatures:
        """Return the features of one of the turns, on the device and in the precision of `like`.

        Args:
            generator: on the CPU.
        """
        index = int(torch.randint(len(self.kept), (1,), generator=generator))
        return _converted(self.kept[index], like.real[0].device, like.real[0].dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that is kept, by names such as `0.gen.2`: turn, image, block."""
        return {
            f"{turn}.{image}.{block}": tensor
            for turn, features in enumerate(self.kept)
            for image in IMAGES
            for block, tensor in enumerate(getattr(features, image))
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; nothing at all empties the history."""
        self.kept.clear()
        blocks = len({name.rsplit(".", 1)[1] for name in tensors})
        for turn in range(len({name.split(".", 1)[0] for name in tensors})):
            images = ([tensors[f"{turn}.{image}.{block}"] for block in range(blocks)] for image in IMAGES)
            self.kept.append(PairFeatures(*images))


def _converted(features: PairFeatures, device: torch.device, dtype: torch.dtype) -> PairFeatures:
    def converted(image: Features) -> Features:
        return [block.detach().to(device, dtype).contiguous() for block in image]  # in one layout, saved or not

    return features.each(converted)
