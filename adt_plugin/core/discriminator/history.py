"""The features of the last turns, for further steps of the heads: a head step costs little, an unroll much.

Samples that the generator makes no more still teach the heads, and keep them from following its last move alone
(Shrivastava et al., arXiv 1612.07828).
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields

import torch
from torch import Tensor

from adt_plugin.core.discriminator.discriminator import PairFeatures

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
        """Keep a turn's features, fetched from the device at once; the oldest turn's are forgotten."""
        blocks = [block.detach() for image in IMAGES for block in getattr(features, image)]
        fetched = torch.cat([block.to(torch.bfloat16).flatten() for block in blocks]).cpu()
        parts = iter(fetched.split([block.numel() for block in blocks]))
        self.kept.append(features.each(lambda image: [next(parts).view(block.shape) for block in image]))

    def draw(self, generator: torch.Generator, like: PairFeatures) -> PairFeatures:
        """Return the features of one of the turns, on the device and in the precision of `like`.

        Args:
            generator: on the CPU.
        """
        index = int(torch.randint(len(self.kept), (1,), generator=generator))
        device, dtype = like.real[0].device, like.real[0].dtype
        return self.kept[index].each(lambda image: [block.to(device, non_blocking=True).to(dtype) for block in image])

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
