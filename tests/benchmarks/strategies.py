"""Other ways to begin a path and to walk it: ablations of the paper's parts, and what neighbours do.

A start is told nothing random but the turn's noise, so that what else it draws comes from there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adt_plugin.core.diffusion.denoiser import Denoiser, call_seeded
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import Unroll, noised_start, unroll
from adt_plugin.demo.finetune import STRATEGIES

FINEST = 10
"""The longest grid that is drawn."""
MEAN_START = 3.5
"""Of the starts 2 to 5 that `ADTConfig()` draws from on its grid of 5."""


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


def unroll_by_length(denoiser: Denoiser, sampler: Sampler, latents: Tensor, seeds: Sequence[int], *rest: Any) -> Unroll:
    """Multiply the gradient at the path's end by its length, 1 at the mean of the starts that ship.

    The balance `cap` bounds what long paths gain by it, so that what is left is that short ones pull less.
    """
    path = unroll(denoiser, sampler, latents, seeds, *rest)
    if path.latents.requires_grad:
        path.latents.register_hook(lambda gradient: gradient * (len(seeds) / MEAN_START))
    return path


class DeepCache:
    """The miniature's denoiser in steps of one path, which takes over the coarse half from the step before where it may.

    DeepCache, arXiv 2312.00858.

    Args:
        denoiser: a `UNet` with its labels bound.
        whole: positions of steps that compute all of it, beside the first.
    """

    def __init__(self, denoiser: Denoiser, whole: Collection[int]) -> None:
        bound: Any = denoiser
        self.unet, self.labels, self.whole = bound.func, bound.keywords["labels"], whole
        self.position = 0
        self.cached: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the prediction `(B, C, h, w)` in the next step of the path; no two that follow each other are borrowed."""
        emb = self.unet.embed(t, self.labels, x.dtype)
        skip = self.unet.down1(self.unet.conv_in(x), emb)
        borrowed = None if self.position in self.whole else self.cached
        deep = self.unet.deep(skip, emb) if borrowed is None else borrowed
        self.cached, self.position = deep if borrowed is None else None, self.position + 1
        predicted: Tensor = self.unet.shallow(skip, deep, emb)
        return predicted


def cached_unroll(
    denoiser: Denoiser, sampler: Sampler, latents: Tensor, seeds: Sequence[int], keep: Sequence[int], *rest: Any
) -> Unroll:
    """Walk with the coarse half of every second step borrowed; steps that are trained compute all of it."""
    return unroll(DeepCache(denoiser, keep), sampler, latents, seeds, keep, *rest)


STRATEGIES["white noise"] = {"noised_start": white_noise_start}
STRATEGIES["shifted grid"] = {"noised_start": shifted_start}
STRATEGIES["any grid"] = {"noised_start": any_grid_start}
STRATEGIES["stopped"] = {"noised_start": higher_start, "unroll": stopped_unroll}
STRATEGIES["unconstrained"] = {"unroll": unconstrained_unroll}
STRATEGIES["cached features"] = {"unroll": cached_unroll}
STRATEGIES["by length"] = {"unroll": unroll_by_length}
