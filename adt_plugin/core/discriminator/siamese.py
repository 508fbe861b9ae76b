"""The discriminator as a whole: which images it sees, and how a pair becomes a score.

`D(a, b) = mean over blocks i of sim(h_i(phi_i(T(a))), h_i(phi_i(T(b))))` with frozen phi, trained h and random T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.discriminator.augment import Augment
from adt_plugin.core.discriminator.backbone import FrozenBackbone
from adt_plugin.core.discriminator.heads import Head
from adt_plugin.core.distributed import averaged
from adt_plugin.core.rng import preserved_rng

SCORE_SCALE = 10.0
"""A cosine lies in [-1, 1], the hinge's margins at -1 and 1: the scale lets a difference of 0.2 fill them (ours)."""

Features = list[Tensor]
"""Of the backbone, one `(B, C_i, h_i, w_i)` per block."""

Embedded = list[Tensor]
"""Of the heads, one `(B, D, h_i, w_i)` per block."""


@dataclass
class Observation:
    """What the backbone saw of one batch of pairs: features of generated images and of two views of the real ones."""

    gen: Features
    real: Features
    real_again: Features

    def detached(self) -> Observation:
        """The same features without the generated images' graph, for the discriminator's own step."""
        return Observation([f.detach() for f in self.gen], self.real, self.real_again)


class SiameseScore(nn.Module):
    """Cosine similarity of the two images' embeddings at the same position, mean over positions and blocks.

    Averaging the embeddings over the image before the cosine instead lost about a third of the gain on the miniature
    (docs/method.md).

    Args:
        channels: of each block's features.
        width: of the heads.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(c, width, width) for c in channels)
        self.bias = nn.Parameter(torch.zeros(len(channels)))

    def compare(self, first: Embedded, second: Embedded) -> Tensor:
        """Scores `(B,)` of pairs."""
        return SCORE_SCALE * (self.cosines(first, second) - self.bias.unsqueeze(1)).mean(0)

    @staticmethod
    def cosines(first: Embedded, second: Embedded) -> Tensor:
        """`(blocks, B)` in [-1, 1]."""
        return torch.stack([F.cosine_similarity(a, b, dim=1).mean((1, 2)) for a, b in zip(first, second, strict=True)])

    @torch.no_grad()
    def calibrate(self, first: Embedded, second: Embedded) -> None:
        """Set the bias so that positive pairs score 0: an uncalibrated cosine leaves the hinge at chance (measured)."""
        self.bias.copy_(averaged(self.cosines(first, second).mean(1)))


class UnaryScore(nn.Module):
    """The ablation: a score of the first image alone, mean of one-channel maps over positions and blocks."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(c, width, 1) for c in channels)

    @staticmethod
    def compare(first: Embedded, second: Embedded) -> Tensor:
        """Scores `(B,)`; the second image is not looked at."""
        return torch.stack([a.mean((1, 2, 3)) for a in first]).mean(0)

    def calibrate(self, first: Embedded, second: Embedded) -> None:
        """Nothing to calibrate: a unary score starts near 0."""


SCORES: dict[str, type[SiameseScore] | type[UnaryScore]] = {"siamese": SiameseScore, "unary": UnaryScore}


class Discriminator(nn.Module):
    """Frozen backbone and trainable heads; its parameters are the heads' only.

    Args:
        backbone: frozen feature extractor.
        kind: `siamese` or `unary`.
        width: channels of the heads.
        augment: names of augmentations, applied to every input.
        noise: standard deviation of the Gaussian noise on every input, in units of the images' [-1, 1].
        image_size: images are resized to about `image_size^2` pixels, aspect ratio kept, sides multiples of the backbone's
            patch; None leaves them as they are.
        seed: of the heads' initial weights and of all augmentation draws.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        kind: str = "siamese",
        width: int = 256,
        augment: Sequence[str] = (),
        noise: float = 0.0,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone, self.image_size = backbone, image_size
        with preserved_rng():
            torch.manual_seed(seed)
            self.score = SCORES[kind](backbone.channels, width)
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = Augment(augment, backbone.patch_size, self.generator, noise)

    @classmethod
    def configured(cls, config: ADTConfig, backbone: FrozenBackbone) -> Discriminator:
        """The discriminator of a run with these options; without `--adt_image_size`, at the backbone's own size."""
        return cls(
            backbone,
            kind=config.disc_type,
            width=config.disc_width,
            augment=config.augmentations,
            noise=config.noise,
            image_size=config.image_size or backbone.image_size,
            seed=config.seed,
        )

    def fitted(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` of any aspect ratio at the size that the backbone is given."""
        if self.image_size is None:
            return images
        size = fitting_size(images.shape[-2], images.shape[-1], self.image_size, self.backbone.patch_size)
        if size == images.shape[-2:]:
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)

    def observe(self, gen: Tensor, real: Tensor) -> Observation:
        """Three backbone passes: the generated images, with their graph if they have one, and two views of the real ones.

        Args:
            gen, real: `(B, 3, H, W)` in [-1, 1].
        """
        gen_features = self.backbone(self.augment(self.fitted(gen)))
        with torch.no_grad():
            fitted = self.fitted(real)
            views = self.backbone(torch.cat([self.augment(fitted), self.augment(fitted)]))
        real_features, real_again = zip(*(view.chunk(2) for view in views), strict=True)
        observed = Observation(gen_features, list(real_features), list(real_again))
        standardizers = [cast(Head, head).standardize for head in self.score.heads]
        before = [standardize.seen for standardize in standardizers]
        for standardize, features in zip(standardizers, real_features, strict=True):
            standardize.update(features)
        if not any(before) and all(standardize.seen for standardize in standardizers):
            self.score.calibrate(*self.embed(observed.real, observed.real_again))
        return observed

    def embed(self, *observed: Features) -> list[Embedded]:
        """Embeddings of several images of one batch each; every head runs once, on all of them."""
        blocks = [torch.cat(block) for block in zip(*observed, strict=True)]
        embedded = [head(block).chunk(len(observed)) for head, block in zip(self.score.heads, blocks, strict=True)]
        return [list(image) for image in zip(*embedded, strict=True)]

    def score_gen(self, observed: Observation) -> Tensor:
        """D(gen, real) `(B,)`."""
        return self.score.compare(*self.embed(observed.gen, observed.real))

    def scores(self, observed: Observation) -> tuple[Tensor, Tensor]:
        """D(real, real') of two augmented views of the same real image, and D(gen, real), both `(B,)`."""
        again, gen, real = self.embed(observed.real_again, observed.gen, observed.real)
        return self.score.compare(again, real), self.score.compare(gen, real)


def fitting_size(height: int, width: int, image_size: int, patch_size: int) -> tuple[int, int]:
    """Sides of about `image_size^2` pixels in the ratio height : width, each a multiple of `patch_size`, at least one patch."""
    aspect = (height / width) ** 0.5
    rows, columns = (max(1, round(side / patch_size)) for side in (image_size * aspect, image_size / aspect))
    return rows * patch_size, columns * patch_size
