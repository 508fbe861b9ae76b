"""The diffusion side: Stable Diffusion's noise schedule, its training loss, and sampling from pure noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adt_plugin.core.diffusion.samplers import Sampler, build_sampler
from adt_plugin.demo.data import CLASSES, LATENT_SHAPE, decode

TIMESTEPS = 1000
LEADING, TRAILING = "ddim", "ddim, trailing"
GRIDS = {LEADING: "leading", TRAILING: "trailing"}
"""The spacing of DDIM's steps by the name that results have.

With 5 of 1000 steps a leading grid, as Stable Diffusion's own DDIM has it, begins at timestep 801; a trailing one at 999, as
k-diffusion's samplers do.
"""


def alphas_cumprod() -> Tensor:
    """Return alpha_bar `(1000,)` of Stable Diffusion's "scaled linear" schedule, float32, falling from 0.999 to 0.005."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, dim=0).float()


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps for latents `(B, 4, 14, 14)` and timesteps `(B,)`."""
    alpha_bar = alphas_cumprod()[timesteps].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def diffusion_pair(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a training example: noisy latents `(B, 4, 14, 14)`, timesteps `(B,)`, and the noise to be predicted."""
    timesteps = torch.randint(TIMESTEPS, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return add_noise(latents, noise, timesteps), timesteps, noise


def evaluation_noise(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw white noise `(count, 4, 14, 14)` and evenly spread classes `(count,)`: shared by every run that is compared."""
    noise = torch.randn((count, *LATENT_SHAPE), generator=torch.Generator().manual_seed(seed))
    return noise, torch.arange(count) % CLASSES


def sample_on(grid: str, unet: nn.Module, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Sample images with DDIM on one of `GRIDS`; the other arguments and the result are those of `sample`."""
    return sample(unet, noise, labels, steps, spacing=GRIDS[grid])


@torch.no_grad()
def sample(
    unet: nn.Module,
    noise: Tensor,
    labels: Tensor,
    steps: int,
    sampler: str = "ddim",
    chunk: int = 500,
    spacing: str = "leading",
) -> Tensor:
    """Sample images `(N, 1, 28, 28)` in [-1, 1] from white noise `(N, 4, 14, 14)` in `steps` steps.

    Chunks bound the memory; they do not change the result.
    """
    walker = build_sampler(sampler, alphas_cumprod(), "epsilon", spacing)
    parts = [_sample(unet, walker, x, y, steps) for x, y in zip(noise.split(chunk), labels.split(chunk), strict=True)]
    return decode(torch.cat(parts)).clamp(-1, 1)


def _sample(unet: nn.Module, sampler: Sampler, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
    sampler.prepare(steps, steps)
    latents = noise * sampler.scheduler.init_noise_sigma
    for timestep in sampler.timesteps:
        noise_pred = unet(sampler.scale_model_input(latents, timestep), timestep.expand(len(latents)), labels)
        latents = sampler.step(noise_pred, timestep, latents)
    return latents
