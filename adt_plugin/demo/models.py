"""The miniature's networks: the denoiser, the metric's two classifiers and the discriminator's backbone.

Metric and backbone must not be alike, or the discriminator would be trained on the metric: they were trained on different
images, for different tasks, and are built differently. The classifiers are plain supervised ReLU networks, the backbone is
a residual GroupNorm network that has only learnt to tell rotations apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adt_plugin.demo.data import CLASSES, LATENT_SHAPE


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generator inside, from which PyTorch's layers draw their weights, and restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, with the time embedding added between: DDPM's block (arXiv 2006.11239)."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.project = nn.Linear(embedding, out_channels)
        self.norm2 = nn.GroupNorm(8, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map `x` (B, in_channels, h, w) and `emb` (B, embedding) to (B, out_channels, h, w)."""
        h = self.conv1(F.silu(self.norm1(x))) + self.project(emb)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class UNet(nn.Module):
    """Class-conditional noise prediction on latents `(B, 4, 14, 14)`: two resolutions, 575 thousand parameters."""

    def __init__(self, width: int = 32, embedding: int = 128) -> None:
        super().__init__()
        channels, wide = LATENT_SHAPE[0], 2 * width
        self.time = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(CLASSES, embedding)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down1 = ResBlock(width, width, embedding)
        self.downsample = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.down2 = ResBlock(wide, wide, embedding)
        self.mid = nn.ModuleList([ResBlock(wide, wide, embedding), ResBlock(wide, wide, embedding)])
        self.up2 = nn.ModuleList([ResBlock(2 * wide, wide, embedding), ResBlock(wide, wide, embedding)])
        self.upsample = nn.Conv2d(wide, width, 3, padding=1)
        self.up1 = ResBlock(2 * width, width, embedding)
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Return the predicted noise, shaped as `x` (B, 4, 14, 14); `timesteps` (B,) in 0..999, `labels` (B,) in 0..9."""
        emb = self.embed(timesteps, labels, x.dtype)
        skip = self.down1(self.conv_in(x), emb)
        return self.shallow(skip, self.deep(skip, emb), emb)

    def embed(self, timesteps: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what every block is told of timesteps and classes, `(B, embedding)`."""
        return F.silu(self.time(sinusoids(timesteps).to(dtype)) + self.label(labels))

    def deep(self, skip: Tensor, emb: Tensor) -> Tensor:
        """Return what the coarse resolution makes of the fine one's features, both `(B, width, 14, 14)`."""
        below = h = self.down2(self.downsample(skip), emb)
        for block in self.mid:
            h = block(h, emb)
        h = torch.cat([h, below], dim=1)
        for block in self.up2:
            h = block(h, emb)
        return self.upsample(F.interpolate(h, scale_factor=2.0, mode="nearest"))

    def shallow(self, skip: Tensor, deep: Tensor, emb: Tensor) -> Tensor:
        """Return the predicted noise from the features of both resolutions."""
        h = self.up1(torch.cat([deep, skip], dim=1), emb)
        return self.conv_out(F.silu(self.norm_out(h)))


def sinusoids(timesteps: Tensor, size: int = 32) -> Tensor:
    """Return the sinusoidal embedding `(B, size)` of `timesteps` (B,), frequencies from 1 to 1e-4 (arXiv 1706.03762)."""
    half = size // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Classifier(nn.Module):
    """The metric's network: a supervised digit classifier whose 64 penultimate activations are the metric's features."""

    features_dim = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 48, 3), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(48 * 5 * 5, self.features_dim), nn.ReLU()),
        )
        self.head = nn.Linear(self.features_dim, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Return features `(B, 64)` >= 0 of images `(B, 1, 28, 28)` in [-1, 1]."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits `(B, 10)` of images `(B, 1, 28, 28)` in [-1, 1]."""
        return self.head(self.features(images))


class Judge(nn.Module):
    """Says whether an image is a well-formed digit of the asked class: strided convolutions, another kind than the metric's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 24, 5, stride=2, padding=2), nn.BatchNorm2d(24), nn.SiLU()),
            *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.SiLU()),
            *(nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.SiLU()),
            *(nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.SiLU()),
        )
        self.head = nn.Linear(64 * 4 * 4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits `(B, 10)` of images `(B, 1, 28, 28)` in [-1, 1]."""
        return self.head(self.body(images).flatten(1))


class ResidualStage(nn.Module):
    """Strided 3x3 convolution, then one residual GroupNorm block with LeakyReLU: `(B, C, h, w)` -> `(B, C', h/s, w/s)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(4, out_channels)
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stage's feature map."""
        x = self.shrink(x)
        return x + self.conv(F.leaky_relu(self.norm(x), 0.2))


class RotationNet(nn.Module):
    """The discriminator's backbone, self-supervised by predicting rotations (RotNet, arXiv 1803.07728).

    Stands where DINOv2 stands at full size: never told a class, frozen once trained.
    """

    channels = (24, 48, 64)  # of the three feature maps, at 14x14, 7x7 and 4x4

    def __init__(self) -> None:
        super().__init__()
        shapes = zip((1, *self.channels[:-1]), self.channels, (2, 2, 2), strict=True)
        self.stages = nn.ModuleList(ResidualStage(*shape) for shape in shapes)
        self.head = nn.Linear(self.channels[-1], 4)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return three feature maps `(B, C_i, h_i, w_i)` of images `(B, 1, 28, 28)` in [-1, 1]."""
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def rotation_logits(self, images: Tensor) -> Tensor:
        """Return logits `(B, 4)` over rotations by 0, 90, 180 and 270 degrees: the pretext task."""
        return self.head(F.leaky_relu(self(images)[-1], 0.2).mean(dim=(2, 3)))
