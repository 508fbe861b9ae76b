"""Other ways to begin a path, to walk it and to judge its end: ablations of the paper's parts, and what neighbours do.

A start is told nothing random but the turn's noise, so that what else it draws comes from there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.denoiser import Denoiser, call_seeded
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import Unroll, noised_start, unroll
from adt_plugin.core.discriminator import Discriminator, FrozenBackbone
from adt_plugin.core.discriminator.heads import Head, Standardize
from adt_plugin.demo.base import Base
from adt_plugin.demo.data import encode
from adt_plugin.demo.diffusion import alphas_cumprod
from adt_plugin.demo.finetune import DISCRIMINATORS, STRATEGIES
from adt_plugin.demo.models import RotationNet, UNet, seeded, sinusoids

FINEST = 10
"""The longest grid that is drawn."""


# Starts


def white_noise_start(sampler: Sampler, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
    """Start from white noise; what the path ends in has nothing to do with its partner but the class.

    With `start_min=1`, noising an image of zeros to the first grid point is white noise of that point's variance.
    """
    return noised_start(sampler, torch.zeros_like(clean), noise, steps, start)


def shifted_start(sampler: Sampler, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
    """Shift the leading grid by a random length, at most to where a trailing one lies; for schedulers like DDIM's."""
    sampler.prepare(steps, start)
    room = sampler.last_timestep - int(sampler.timesteps[0])
    sampler.scheduler.timesteps = sampler.timesteps + drawn(noise, room + 1)
    return sampler.add_noise(clean, noise, start)


def any_grid_start(sampler: Sampler, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
    """Walk as many steps, on a grid of `start` to `FINEST` points."""
    return noised_start(sampler, clean, noise, start + drawn(noise, FINEST + 1 - start), start)


def higher_start(sampler: Sampler, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
    """Walk as many steps from a random point that is no lower, so that the path stops before its end: for `stopped_unroll`."""
    sampler.prepare(steps, start)
    first = drawn(noise, steps - start + 1)
    sampler.scheduler.timesteps = sampler.timesteps[first : first + start]
    return sampler.add_noise(clean, noise, start)


def drawn(noise: Tensor, count: int) -> int:
    """Draw a number below `count`, the same for the same noise."""
    return int(noise.double().abs().sum() * 1e6) % count


# Walks


def unconstrained_unroll(
    denoiser: Denoiser,
    sampler: Sampler,
    latents: Tensor,
    seeds: Sequence[int],
    keep: Sequence[int],
    record: bool,
    graph_denoiser: Denoiser | None = None,
) -> Unroll:
    """Let gradients also flow through the denoiser's inputs, step through step; for samplers without memory.

    The path is walked a second time with its graph, so that dL/do_i holds what o_i does to all later outputs; replaying
    the trained steps with it gives the full gradient.
    """
    path = unroll(denoiser, sampler, latents, seeds, keep, record)
    if not record:
        return path
    steps = []
    for step in path.steps:
        output = call_seeded(denoiser, latents, step.timestep, step.seed)
        latents = sampler.step(output, step.timestep, latents)
        steps.append(replace(step, output=output))
    return Unroll(latents, steps)


class StoppedSampler(Sampler):
    """Jumps from the last point of the grid to the image that is predicted there."""

    def step(self, output: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the next latents, or the predicted ones at the end."""
        stepped: Any = self.scheduler.step(output, timestep, latents)
        last: Tensor = stepped.pred_original_sample if timestep == self.timesteps[-1] else stepped.prev_sample
        return last


def stopped_unroll(denoiser: Denoiser, sampler: Sampler, *rest: Any) -> Unroll:
    """Judge the image that is predicted where the path stops (Self Forcing's truncation, arXiv 2506.08009)."""
    return unroll(denoiser, StoppedSampler(sampler.scheduler), *rest)


STRATEGIES["white noise"] = {"noised_start": white_noise_start}
STRATEGIES["shifted grid"] = {"noised_start": shifted_start}
STRATEGIES["any grid"] = {"noised_start": any_grid_start}
STRATEGIES["stopped"] = {"noised_start": higher_start, "unroll": stopped_unroll}
STRATEGIES["unconstrained"] = {"unroll": unconstrained_unroll}


# Discriminators


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


for name, build in {"untrained backbone": untrained, "trained backbone": trained, "denoiser features": on_the_denoiser}.items():
    STRATEGIES[name], DISCRIMINATORS[name] = {}, build
