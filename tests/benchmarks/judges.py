"""Other discriminators: ablations of the paper's light heads on a pretrained backbone, and what else might judge a path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import noised_start
from adt_plugin.core.discriminator import Discriminator, FrozenBackbone
from adt_plugin.core.discriminator.discriminator import PairFeatures
from adt_plugin.core.discriminator.heads import Head, Standardize
from adt_plugin.core.discriminator.scores import Embedding, SiameseScore, UnaryScore
from adt_plugin.demo.base import Base
from adt_plugin.demo.data import encode
from adt_plugin.demo.diffusion import alphas_cumprod
from adt_plugin.demo.finetune import DISCRIMINATORS, STRATEGIES, discriminator_of
from adt_plugin.demo.models import RotationNet, UNet, seeded, sinusoids

HEADS_DECAY = 0.9
"""A turn, of the average of the heads' weights: ten turns of the hundred that a run has."""
HIGH_START = 4
"""The first start whose end is judged by itself, of 5."""

# Other features


def untrained(config: ADTConfig, base: Base) -> Discriminator:
    """A backbone of the same form that has learnt nothing, the same for every run."""
    with seeded(0):
        network = RotationNet()
    return Discriminator.from_config(config, FrozenBackbone(network, network.channels))


class Pixels(nn.Module):
    """In place of features: the image itself, once for every head."""

    channels = (1, 1, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return images `(B, 1, H, W)` as they are, three times."""
        return [images] * len(self.channels)


class DeepHead(nn.Module):
    """A head with its own copy of the backbone's first stages, all of which are trained.

    Attributes:
        standardize: statistics of the pixels; the stages are given the pixels themselves.
    """

    def __init__(self, backbone: RotationNet, stages: int, width: int) -> None:
        super().__init__()
        self.standardize = Standardize(1)
        self.stages = copy.deepcopy(backbone.stages[:stages]).requires_grad_(True)
        self.head = Head(backbone.channels[stages - 1], width, width)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding of images `(B, 1, H, W)`."""
        features = images
        for stage in self.stages:
            features = stage(features)
        embedding: Tensor = self.head(features)
        return embedding


def trained(config: ADTConfig, base: Base) -> Discriminator:
    """A backbone that begins as the shipped one and is trained together with the heads."""
    discriminator = Discriminator.from_config(config, FrozenBackbone(Pixels(), Pixels.channels))
    with seeded(config.seed):
        heads = [DeepHead(base.backbone, stages, config.disc_width) for stages in (1, 2, 3)]
    discriminator.score.heads = nn.ModuleList(heads)
    return discriminator


class DenoiserFeatures(nn.Module):
    """The frozen denoiser as feature network: it is given the image as if it were noised to a timestep, and no class.

    Args:
        unet: is not changed.
        noise: deviation of the noise that is on the images already, which decides the timestep.
    """

    def __init__(self, unet: UNet, noise: float) -> None:
        super().__init__()
        self.unet = unet
        alphas = alphas_cumprod()
        self.timestep = int((((1 - alphas) / alphas).sqrt() - noise).abs().argmin())
        self.scale = float(alphas[self.timestep].sqrt())
        self.channels = [unet.down1.conv2.out_channels, *[unet.down2.conv2.out_channels] * 2]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return what both resolutions and the middle make of images `(B, 1, 28, 28)`."""
        unet, timesteps = self.unet, torch.full((len(images),), self.timestep)
        embedding = nn.functional.silu(unet.time(sinusoids(timesteps)) + unet.label.weight.mean(0))
        maps = [unet.down1(unet.conv_in(self.scale * encode(images)), embedding)]
        maps.append(unet.down2(unet.downsample(maps[0]), embedding))
        middle = maps[1]
        for block in unet.mid:
            middle = block(middle, embedding)
        return [*maps, middle]


def on_the_denoiser(config: ADTConfig, base: Base) -> Discriminator:
    """Heads on the denoiser's own features of noised images (DMD2, arXiv 2405.14867)."""
    network = DenoiserFeatures(base.unet, config.noise)
    return Discriminator.from_config(config, FrozenBackbone(network, network.channels))


class TwoScales(nn.Module):
    """Features of the image, and of the image at twice its size, where the same filters see half as much."""

    def __init__(self, network: RotationNet) -> None:
        super().__init__()
        self.network, self.channels = network, [*network.channels] * 2

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of images `(B, 1, H, W)` at both scales, the coarse ones first."""
        twice = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
        return [*self.network(images), *self.network(twice)]


def at_two_scales(config: ADTConfig, base: Base) -> Discriminator:
    """Heads for each scale."""
    network = TwoScales(base.backbone)
    return Discriminator.from_config(config, FrozenBackbone(network, network.channels))


# Other heads on the same features


def normed(config: ADTConfig, base: Base) -> Discriminator:
    """Convolutions of the heads of spectral norm 1 (arXiv 1802.05957).

    The score hardly depends on their scale, since a GroupNorm follows the first and a cosine the second: what is bounded is how
    far a step turns them.
    """
    discriminator = discriminator_of(config, base)
    with seeded(config.seed):
        for module in list(discriminator.score.heads.modules()):
            if isinstance(module, nn.Conv2d):
                spectral_norm(module)
    return discriminator


class FollowsAverage(Discriminator):
    """What the denoiser follows is judged by an average of the heads' weights over the last turns."""

    def score_gen(self, features: PairFeatures) -> Tensor:
        """Take the heads as they are into the average, and return its scores `(B,)`."""
        trained, average = self.score, self.__dict__.get("average") or copy.deepcopy(self.score).requires_grad_(False)
        self.__dict__["average"] = average  # no submodule: it is not trained
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), trained.parameters(), strict=True):
                mean.lerp_(weight, 1 - HEADS_DECAY)
            for mean, statistic in zip(average.buffers(), trained.buffers(), strict=True):
                mean.copy_(statistic)
        self.score = average
        try:
            return super().score_gen(features)
        finally:
            self.score = trained


def next_in_batch(embedding: Embedding) -> Embedding:
    """Return for each image of a batch the embedding of another one."""
    return [block.roll(1, 0) for block in embedding]


class OthersAsPartners(Discriminator):
    """All pairs are with another real image of the batch, so that none can be told by its content."""

    def score_gen(self, features: PairFeatures) -> Tensor:
        """Return D(gen, other) `(B,)`."""
        gen, again = self.embed(features.gen, features.real_again)
        return self.score.compare(gen, next_in_batch(again))

    def scores(self, features: PairFeatures) -> tuple[Tensor, Tensor]:
        """Return D(real, other) and D(gen, other), both `(B,)`."""
        again, gen, real = self.embed(features.real_again, features.gen, features.real)
        other = next_in_batch(again)
        return self.score.compare(real, other), self.score.compare(gen, other)


# Pairs for low starts, the generated image by itself for high ones


class Twice(nn.Module):
    """The same features twice, for two kinds of heads."""

    def __init__(self, network: RotationNet) -> None:
        super().__init__()
        self.network, self.channels = network, [*network.channels] * 2

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of images `(B, 1, H, W)`."""
        features = self.network(images)
        return [*features, *features]


class PairAndSingle(nn.Module):
    """A siamese and a unary score, each with heads of its own."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.pair, self.single = SiameseScore(channels, width), UnaryScore(channels, width)
        self.heads = nn.ModuleList([*self.pair.heads, *self.single.heads])
        self.blocks = len(channels)

    def pairwise(self, first: Embedding, second: Embedding) -> Tensor:
        """Return the siamese scores `(B,)`."""
        return self.pair.compare(first[: self.blocks], second[: self.blocks])

    def alone(self, first: Embedding, second: Embedding) -> Tensor:
        """Return the unary scores `(B,)`."""
        return self.single.compare(first[self.blocks :], second[self.blocks :])

    def compare(self, first: Embedding, second: Embedding) -> Tensor:
        """Return the scores of both kinds `(2 B,)`, which train each kind by itself."""
        return torch.cat([self.pairwise(first, second), self.alone(first, second)])

    def calibrate(self, first: Embedding, second: Embedding) -> None:
        """Calibrate the siamese score."""
        self.pair.calibrate(first[: self.blocks], second[: self.blocks])


class ByStart(Discriminator):
    """The denoiser follows the siamese score from a low start, and the unary one from a high one.

    Attributes:
        start: of the turn that is being made; there is one at a time.
    """

    score: PairAndSingle
    start = 0

    def score_gen(self, features: PairFeatures) -> Tensor:
        """Return scores `(B,)` of the kind that the last start asks for."""
        of_its_kind = self.score.alone if ByStart.start >= HIGH_START else self.score.pairwise
        return of_its_kind(*self.embed(features.gen, features.real))


def noted_start(sampler: Sampler, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
    """Begin as ADT does, and let `ByStart` know where."""
    ByStart.start = start
    return noised_start(sampler, clean, noise, steps, start)


def by_start(config: ADTConfig, base: Base) -> Discriminator:
    """Both kinds of heads on each block."""
    network = Twice(base.backbone)
    discriminator = ByStart.from_config(config, FrozenBackbone(network, network.channels))
    with seeded(config.seed):
        discriminator.score = PairAndSingle(base.backbone.channels, config.disc_width)
    return discriminator


def of_kind(kind: type[Discriminator], config: ADTConfig, base: Base) -> Discriminator:
    """Build this kind over the shipped backbone."""
    return kind.from_config(config, FrozenBackbone(base.backbone, base.backbone.channels))


JUDGES: dict[str, Callable[[ADTConfig, Base], Discriminator]] = {
    "untrained backbone": untrained,
    "trained backbone": trained,
    "denoiser features": on_the_denoiser,
    "two scales": at_two_scales,
    "spectral norms": normed,
    "averaged heads": partial(of_kind, FollowsAverage),
    "other partners": partial(of_kind, OthersAsPartners),
    "by start": by_start,
}
for name, build in JUDGES.items():
    STRATEGIES[name], DISCRIMINATORS[name] = {"noised_start": noted_start} if name == "by start" else {}, build
