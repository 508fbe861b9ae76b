"""Image-to-image start and unroll: the sampler's own path from a noised image to an image, made differentiable step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adt_plugin.core.diffusion.denoiser import Denoiser, call_seeded, call_with_graph
from adt_plugin.core.diffusion.samplers import Sampler

NoisedStart = Callable[[Sampler, Tensor, Tensor, int, int], Tensor]
"""The form of `noised_start`."""


@dataclass
class UnrolledStep:
    """One denoiser call of the unroll.

    Attributes:
        timestep: 0-dim CPU tensor, in the scheduler's convention.
        output: the network's output o_i `(B, C, h, w)`, at least float32, a leaf with gradient if the unroll records one.
        model_input: the stopped input sg(x_i) `(B, C, h, w)`; kept for the steps that will be replayed, else None.
        seed: of the global generators during the call, so that a replay meets the same dropout.
        graph_output: the same output with its graph through the network, if that was kept; else None.
    """

    timestep: Tensor
    output: Tensor
    model_input: Tensor | None
    seed: int
    graph_output: Tensor | None = None


@dataclass
class Unroll:
    """The unrolled path: `latents` x_0' `(B, C, h, w)` as a function of the leaves in `steps`, first to last."""

    latents: Tensor
    steps: list[UnrolledStep]


UnrollFunction = Callable[[Denoiser, Sampler, Tensor, Sequence[int], Sequence[int], bool, "Denoiser | None"], Unroll]
"""The form of `unroll`."""


def noised_start(sampler: Sampler, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
    """Prepare `sampler` for the last `start` of `steps` grid points and noise `clean` to the first of them.

    x_s = alpha_s x_0 + sigma_s eps, in the scheduler's own scaling. Noise and clean latents are `(B, C, h, w)`; `start` is s
    in 1..m.
    """
    sampler.prepare(steps, start)
    return sampler.add_noise(clean, noise, start)


def unroll(
    denoiser: Denoiser,
    sampler: Sampler,
    latents: Tensor,
    seeds: Sequence[int],
    keep: Sequence[int],
    record: bool,
    graph_denoiser: Denoiser | None = None,
) -> Unroll:
    """Walk the last `len(seeds)` points of the sampler's grid.

    Each output is cut from the network (a leaf if `record`), and the scheduler's own chain from leaves to x_0' stays
    differentiable; the denoiser's input is stopped at every step (the paper's constrained backward path).

    Args:
        latents: x_s `(B, C, h, w)` from `noised_start`, which also prepared the sampler.
        seeds: one per step; the global generators are seeded with it before the call.
        keep: positions (0 is the first step walked) whose inputs are kept for `replay`.
        record: whether the outputs require grad.
        graph_denoiser: calls the same network for the steps in `keep`, whose graphs are then kept for `replay`; None keeps
            no graph through the network.
    """
    steps: list[UnrolledStep] = []
    timesteps = sampler.timesteps[len(sampler.timesteps) - len(seeds) :]
    for position, (timestep, seed) in enumerate(zip(timesteps, seeds, strict=True)):
        with torch.no_grad():
            model_input = sampler.scale_model_input(latents, timestep).detach()
        graph_output = None
        if graph_denoiser is not None and position in keep:
            output = graph_output = call_with_graph(graph_denoiser, model_input, timestep, seed)
        else:
            with torch.no_grad():
                output = call_seeded(denoiser, model_input, timestep, seed)
        output = output.detach().to(torch.promote_types(output.dtype, torch.float32)).requires_grad_(record)
        with torch.set_grad_enabled(record):
            latents = sampler.step(output, timestep, latents)
        steps.append(UnrolledStep(timestep, output, model_input if position in keep else None, seed, graph_output))
    return Unroll(latents, steps)
