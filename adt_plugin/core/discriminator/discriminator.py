"""The discriminator as a whole: which images it sees, and the scores of real and of generated pairs.

`D(a, b) = mean over blocks i of sim(h_i(phi_i(T(a))), h_i(phi_i(T(b))))` with frozen phi, trained h and random T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adt_plugin.core.config import DiscriminatorConfig
from adt_plugin.core.discriminator.augment import Augment
from adt_plugin.core.discriminator.backbone import FrozenBackbone
from adt_plugin.core.discriminator.heads import Head, Standardize
from adt_plugin.core.discriminator.scores import SCORES, Embedding, Score
from adt_plugin.core.rng import normal_like, preserved_rng

OTHERS = 8
"""Images of a set that each is compared with, at the most (ours)."""

STEP = 0.1
"""Of the noise that measures how steep the scores are, in deviations of the features."""

Features = list[Tensor]
"""Outputs of the backbone, one `(B, C_i, h_i, w_i)` per block."""


@dataclass
class PairFeatures:
    """The backbone's features of one batch of pairs.

    Attributes:
        gen: of the generated images.
        real: of the real ones under the same augmentation, image by image.
        real_again: of the real ones under another.
    """

    gen: Features
    real: Features
    real_again: Features

    def each(self, change: Callable[[Features], Features]) -> PairFeatures:
        """Return the features with all three images' changed, in the order of the fields."""
        return PairFeatures(change(self.gen), change(self.real), change(self.real_again))

    def detached(self) -> PairFeatures:
        """Return the same features without the generated images' graph, for the discriminator's own step."""
        return PairFeatures([f.detach() for f in self.gen], self.real, self.real_again)


class Discriminator(nn.Module):
    """Frozen backbone and trainable heads; its parameters are the heads' only.

    Args:
        backbone: frozen feature extractor.
        kind: a key of `SCORES`.
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
            self.score: Score = SCORES[kind](backbone.channels, width)
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = Augment(augment, backbone.patch_size, self.generator, noise)

    @classmethod
    def from_config(cls, config: DiscriminatorConfig, backbone: FrozenBackbone) -> Discriminator:
        """Build the discriminator of a run with these options; without `--adt_image_size`, at the backbone's own size."""
        return cls(
            backbone,
            kind=config.disc_type,
            width=config.disc_width,
            augment=config.augmentations,
            noise=config.noise,
            image_size=config.image_size or backbone.image_size,
            seed=config.seed,
        )

    @property
    def standardizers(self) -> list[Standardize]:
        """The heads' statistics of real features."""
        return [cast(Head, head).standardize for head in self.score.heads]

    @property
    def settled(self) -> bool:
        """Whether these statistics are complete, so that standardised features of later turns compare with each other."""
        return all(standardize.seen >= standardize.updates for standardize in self.standardizers)

    def fit_size(self, images: Tensor) -> Tensor:
        """Resize images `(B, 3, H, W)` of any aspect ratio to what the backbone is given."""
        if self.image_size is None:
            return images
        size = fitting_size(images.shape[-2], images.shape[-1], self.image_size, self.backbone.patch_size)
        if size == images.shape[-2:]:
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)

    def pair_features(self, gen: Tensor, real: Tensor) -> PairFeatures:
        """Run the backbone on the generated images, with their graph if they have one, and on two views of the real ones.

        The first batches also go into the heads' statistics of real features.

        Args:
            gen, real: `(B, 3, H, W)` in [-1, 1].
        """
        features = self.features_of(gen, real)
        self._collect_statistics(features)
        return features

    def features_of(self, gen: Tensor, real: Tensor) -> PairFeatures:
        """Return the same features and leave the statistics as they are."""
        draws = self.generator.get_state()
        gen_features = self.backbone(self.augment(self.fit_size(gen)))
        with torch.no_grad():
            fitted = self.fit_size(real)
            self.generator.set_state(draws)
            aligned = self.augment(fitted)
            views = self.backbone(torch.cat([aligned, self.augment(fitted)]))
        real_features, real_again = zip(*(view.chunk(2) for view in views), strict=True)
        return PairFeatures(gen_features, list(real_features), list(real_again))

    def _collect_statistics(self, features: PairFeatures) -> None:
        """Update the heads' statistics; calibrate the score on the first batch."""
        is_first = not any(standardize.seen for standardize in self.standardizers)
        for standardize, real in zip(self.standardizers, features.real, strict=True):
            standardize.update(real)
        if is_first and all(standardize.seen for standardize in self.standardizers):
            self.score.calibrate(*self.embed(features.real, features.real_again))

    def embed(self, *features: Features) -> list[Embedding]:
        """Return the embeddings of several images of one batch each; every head runs once, on all of them."""
        blocks = [torch.cat(block) for block in zip(*features, strict=True)]
        embedded = [head(block).chunk(len(features)) for head, block in zip(self.score.heads, blocks, strict=True)]
        return [list(image) for image in zip(*embedded, strict=True)]

    def score_gen(self, features: PairFeatures) -> Tensor:
        """Return D(gen, real) `(B,)` of two images that lie on each other: what the generator follows.

        Under two different shifts the comparison of positions asks it to move what it drew: then only 4 to 10 % of the
        gradient at the image points to the real one, under one shift 36 to 46 % (cosines, measured on the miniature).
        """
        return self.score.compare(*self.embed(features.gen, features.real))

    def score_among(self, features: PairFeatures, earlier: Sequence[PairFeatures] = ()) -> Tensor:
        """Return how much more each generated image is like other real images than like other generated ones `(B,)`.

        Its gradient is that of a squared maximum mean discrepancy with D as the kernel (arXiv 1705.08584), which for cosines is
        the distance of the sets' mean embeddings (feature matching, arXiv 1606.03498): none once these agree. D(gen, real)
        alone asks for what is best on average where the source cannot be told from its noise, so that images get alike. That a
        turn weighs both is ours.

        Args:
            features: of this turn.
            earlier: of other images where a batch is of one; of the same shape.
        """
        gen, real = self.embed(features.gen, features.real)
        others = list(self._others(gen, real, earlier))
        if not others:
            return gen[0].new_zeros(len(gen[0]))
        differences = [self.score.compare(gen, real_one) - self.score.compare(gen, gen_one) for gen_one, real_one in others]
        return torch.stack(differences).mean(0)

    @torch.no_grad()
    def _others(
        self, gen: Embedding, real: Embedding, earlier: Sequence[PairFeatures]
    ) -> Iterator[tuple[Embedding, Embedding]]:
        """Yield embeddings of other generated and real images for each of a batch: its neighbours, or earlier turns'."""
        batch = len(gen[0])
        for shift in range(1, min(batch, OTHERS + 1)):
            yield [block.roll(shift, 0) for block in gen], [block.roll(shift, 0) for block in real]
        if batch == 1:
            for other in earlier[-OTHERS:]:
                gen_one, real_one = self.embed(other.gen, other.real)
                yield gen_one, real_one

    def scores(self, features: PairFeatures) -> tuple[Tensor, Tensor]:
        """Return D(real, real') of two augmented views of the same real image, and D(gen, real'), both `(B,)`.

        Both pairs are of different augmentations, so that the discriminator cannot tell them by that.
        """
        again, gen, real = self.embed(features.real_again, features.gen, features.real)
        return self.score.compare(real, again), self.score.compare(gen, again)

    def roughness(self, features: PairFeatures, score_real: Tensor, score_gen: Tensor) -> Tensor:
        """Return the mean squared slope of both scores, 0-dim: how fast they change as all features of a pair change.

        Estimated without a second derivative, by one draw of Gaussian noise of `STEP` times each channel's deviation on real
        images, over `STEP` squared (the approximation of APT, arXiv 2501.08316, on features instead of pixels). As a penalty
        it stands for R1 and R2, zero-centred on real and on generated pairs (arXiv 1801.04406).
        """
        noisy_real, noisy_gen = self.scores(self._perturbed(features))
        return ((noisy_real - score_real).square().mean() + (noisy_gen - score_gen).square().mean()) / STEP**2

    def _perturbed(self, features: PairFeatures) -> PairFeatures:
        deviations = [standardize.deviation for standardize in self.standardizers]

        def perturbed(image: Features) -> Features:
            noise = [normal_like(block, self.generator) for block in image]
            return [block + STEP * std * n for block, std, n in zip(image, deviations, noise, strict=True)]

        return features.each(perturbed)


def fitting_size(height: int, width: int, image_size: int, patch_size: int) -> tuple[int, int]:
    """Return sides of about `image_size^2` pixels in the ratio height : width, multiples of `patch_size`, at least one."""
    aspect = (height / width) ** 0.5
    rows, columns = (max(1, round(side / patch_size)) for side in (image_size * aspect, image_size / aspect))
    return rows * patch_size, columns * patch_size
