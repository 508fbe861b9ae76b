"""Light trainable heads, one per backbone block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adt_plugin.core.distributed import all_reduce_mean


class Standardize(nn.Module):
    """Per-channel standardisation with statistics of real features, collected over the first `updates` batches.

    Backbone channels differ in scale by orders of magnitude; the similarity of raw features is blind to most of them
    (ours; docs/method.md, what the heads see).
    """

    mean: Tensor
    square: Tensor

    def __init__(self, channels: int, updates: int = 32) -> None:
        super().__init__()
        self.updates, self.seen = updates, 0
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Take a batch of real features `(B, C, h, w)` into the running statistics, while they are being collected.

        A batch that is not finite in any process is left out in all; until enough are in, each waits for the device.
        """
        if self.seen >= self.updates:
            return
        mean, square = (all_reduce_mean(values.mean((0, 2, 3)).to(self.mean.dtype)) for values in (features, features.square()))
        if not (mean.isfinite() & square.isfinite()).all():
            return
        share = 1.0 / (self.seen + 1)
        self.mean.lerp_(mean, share)
        self.square.lerp_(square, share)
        self.seen += 1

    def get_extra_state(self) -> Tensor:
        """Return the number of batches seen: part of the state dict, but no device value that a turn would wait for."""
        return torch.tensor(self.seen)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of batches seen."""
        self.seen = int(state)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each channel of real features `(1, C, 1, 1)`, at least 0.001."""
        return (self.square - self.mean.square()).clamp_min(1e-6).sqrt().view(1, -1, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features `(B, C, h, w)` with about zero mean and unit variance per channel."""
        return (features - self.mean.view(1, -1, 1, 1)) / self.deviation


class Head(nn.Module):
    """1x1 convolution, GroupNorm, LeakyReLU, 3x3 convolution (the form of PCM's heads; widths ours).

    Maps features `(B, C, h, w)` to an embedding `(B, out_channels, h, w)`.
    """

    def __init__(self, channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if width % g == 0 and width // g >= 4)
        self.standardize = Standardize(channels)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.GroupNorm(groups, width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, out_channels, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the embedding."""
        embedding: Tensor = self.layers(self.standardize(features))
        return embedding
