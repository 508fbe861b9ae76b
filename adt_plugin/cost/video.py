"""A video autoencoder's decoder for a single frame, in the layout of Qwen-Image's (Wan's), which Anima uses.

The diffusers of sd-scripts does not have it. Its convolutions over time see two frames of zeros before the only one and are
computed whole: three times the operations of an image decoder's of that width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

RESNETS = 3
"""Residual blocks of a level of the decoder."""


class CausalConvolution(nn.Conv3d):
    """A convolution over time and space `(B, C, T, h, w)` that sees no later frame and keeps the size."""

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__(channels, out, kernel)
        self.border = (kernel // 2,) * 4 + (kernel - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many frames of the new channels."""
        return super().forward(F.pad(x, self.border))


class Norm(nn.Module):
    """Root mean square norm over the channels of `(B, C, T, h, w)`, with a weight for each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised."""
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.weight


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(channels), CausalConvolution(channels, out)
        self.norm2, self.conv2 = Norm(out), CausalConvolution(out, out)
        self.shortcut = CausalConvolution(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, out, T, h, w)`."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(hidden))) + self.shortcut(x)


class Attention(nn.Module):
    """Self-attention with one head over the places of the only frame `(B, C, 1, h, w)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.query_key_value, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        projected = self.query_key_value(self.norm(x).squeeze(2)).flatten(2).transpose(1, 2).unsqueeze(1)
        attended = F.scaled_dot_product_attention(*projected.chunk(3, -1)).squeeze(1).transpose(1, 2)
        return x + self.out(attended.unflatten(2, x.shape[-2:])).unsqueeze(2)


class Upsample(nn.Module):
    """Twice the height and width, half the channels; the first frame is not doubled in time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, C / 2, 1, 2 h, 2 w)`."""
        larger = F.interpolate(x.squeeze(2).float(), scale_factor=2.0, mode="nearest-exact").to(x.dtype)
        return self.conv(larger).unsqueeze(2)


class Level(nn.Module):
    """Residual blocks at one resolution, and the way to the next; lists, as diffusers has them, so that both are found."""

    def __init__(self, channels: int, out: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(out if i else channels, out) for i in range(RESNETS))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out)])

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, out, 1, h, w)`, or what `Upsample` makes of it."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Middle(nn.Module):
    """Attention between two residual blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels)])
        self.resnets = nn.ModuleList(Residual(channels, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class VideoDecoder(nn.Module):
    """Latents `(B, latent_channels, 1, h, w)` -> a frame `(B, 3, 1, H, W)`.

    Args:
        channels: of the levels, that of the image first; every level but the first halves the sides.
    """

    def __init__(self, channels: Sequence[int], latent_channels: int) -> None:
        super().__init__()
        levels = [channels[-1], *reversed(channels)]
        self.conv_in, self.mid_block = CausalConvolution(latent_channels, levels[0]), Middle(levels[0])
        self.up_blocks = nn.ModuleList(
            Level(before // 2 if i else before, out, last=i == len(channels) - 1)
            for i, (before, out) in enumerate(zip(levels, levels[1:], strict=False))
        )
        self.norm_out, self.conv_out = Norm(channels[0]), CausalConvolution(channels[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        """Decode."""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VideoAutoencoder(nn.Module):
    """What a turn takes from such an autoencoder."""

    def __init__(self, channels: Sequence[int], latent_channels: int) -> None:
        super().__init__()
        self.decoder = VideoDecoder(channels, latent_channels)
        self.post_quant_conv = CausalConvolution(latent_channels, latent_channels, 1)
