"""Networks and schedules small enough for exact arithmetic in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.samplers import build_sampler
from adt_plugin.core.discriminator import Discriminator, FrozenBackbone
from adt_plugin.core.turn import AdversarialTurn

SD_ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


class ToyDenoiser(nn.Module):
    """A nonlinear network of latents `(B, 4, h, w)` and timesteps, with dropout if asked for."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float32, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.first, self.last = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.calls = 0
        self.to(dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.first(x) + (t.to(x.dtype) / 1000).view(-1, 1, 1, 1)
        return self.last(self.dropout(torch.tanh(hidden)))

    def gradients(self) -> Tensor:
        """All parameter gradients as one vector; zeros where there is none."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters()])


class ToyFeatures(nn.Module):
    """Two feature maps of images `(B, 3, H, W)`."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        first = torch.tanh(self.first(images))
        return [first, torch.tanh(self.second(first))]


def toy_decode(latents: Tensor) -> Tensor:
    """Latents `(B, 4, h, w)` -> images `(B, 3, 2h, 2w)`."""
    return F.interpolate(torch.tanh(latents[:, :3] + 0.3 * latents[:, 3:]), scale_factor=2.0)


def toy_discriminator(kind: str = "siamese", augment: tuple[str, ...] = ("color", "translation", "cutout")) -> Discriminator:
    return Discriminator(FrozenBackbone(ToyFeatures(), [8, 12]), kind=kind, width=16, augment=augment)


def toy_turn(sampler: str = "ddim", prediction_type: str = "epsilon", **options: object) -> AdversarialTurn:
    """A turn on the toys; `options` are fields of ADTConfig, without warm-up unless said."""
    config = ADTConfig(**{"warmup": 0, "steps": 5} | options)  # type: ignore[arg-type]
    walked = build_sampler(sampler, SD_ALPHAS_CUMPROD, prediction_type)
    return AdversarialTurn(config, sampler=walked, decode=toy_decode, discriminator=toy_discriminator(config.disc_type))


def diffusion_backward(turn: AdversarialTurn, net: ToyDenoiser, latents: Tensor) -> None:
    """A host's step up to its backward: the prediction is watched, the loss's gradient is in `p.grad`."""
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
    prediction = net(latents + noise, torch.full((len(latents),), 300))
    turn.watch(prediction)
    F.mse_loss(prediction, noise).backward()


def toy_latents(batch: int = 2, seed: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)
