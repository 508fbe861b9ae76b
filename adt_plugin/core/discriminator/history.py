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

PRECISION = torch.bfloat16


def blocks_of(features: PairFeatures) -> list[Tensor]:
    """Return the features of all images and blocks, in the order in which they are packed."""
    return [block for image in IMAGES for block in getattr(features, image)]


def packed(features: PairFeatures) -> Tensor:
    """Return all features of a turn as one vector, in the precision of the history and on their own device."""
    return torch.cat([block.detach().to(PRECISION).flatten() for block in blocks_of(features)])


def placed(features: PairFeatures, like: PairFeatures) -> PairFeatures:
    """Return features on the device and in the precision of others, rounded as all that is kept."""
    device, dtype = like.real[0].device, like.real[0].dtype
    return features.each(lambda image: [block.to(device, non_blocking=True).to(PRECISION).to(dtype) for block in image])


class FeatureHistory:
    """Pairs of the last turns, on the CPU and in bfloat16, so that they cost a device no memory.

    A turn draws from it before its own features have travelled, so that they can travel with its report.
    """

    def __init__(self, turns: int = TURNS) -> None:
        self.kept: deque[PairFeatures] = deque(maxlen=turns)

    def __len__(self) -> int:
        return len(self.kept)

    def add(self, vector: Tensor, like: PairFeatures) -> None:
        """Keep a turn's features; the oldest turn's are forgotten.

        Args:
            vector: from `packed`, on the CPU by now.
            like: gives the shapes.
        """
        parts = iter(vector.split([block.numel() for block in blocks_of(like)]))
        self.kept.append(like.each(lambda image: [next(parts).view(block.shape) for block in image]))

    def draw(self, generator: torch.Generator, latest: PairFeatures) -> PairFeatures:
        """Return the features of one of the last turns, on the device and in the precision of the latest.

        Args:
            generator: on the CPU.
            latest: of the turn that is under way, which is one of those that may be drawn; it is rounded as all others are.
        """
        older = list(self.kept)[1 if len(self.kept) == self.kept.maxlen else 0 :]
        index = int(torch.randint(len(older) + 1, (1,), generator=generator))
        return placed(latest if index == len(older) else older[index], latest)

    def like(self, features: PairFeatures) -> list[PairFeatures]:
        """Return the turns that are kept whose features have the shapes of these, on their device and in their precision."""
        shapes = [block.shape for block in features.real]
        return [placed(kept, features) for kept in self.kept if [block.shape for block in kept.real] == shapes]

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
