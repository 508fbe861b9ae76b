"""Image-to-image start and the unroll, over any diffusers scheduler whose `step` is differentiable.

No sampler's formula is written here: the grid, the noising, the input scaling and the step are the scheduler's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adt_plugin.core.config import ConfigError
from adt_plugin.core.rng import seed_everything

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`(x (B, C, h, w), t (B,)) -> prediction (B, C, h, w)`: noise, v or flow velocity, as the scheduler is configured."""

FLOW_TIMESTEPS = 1000
"""Flow-matching schedulers count their time sigma in [0, 1] in thousandths."""

ALMOST_ZERO = 2.0**-24
"""Stands for a terminal alpha_bar of exactly 0 where a sampler works in sigma = sqrt((1 - a) / a) (diffusers' own choice)."""


class Guided:
    """A denoiser under classifier-free guidance, o = u + scale (c - u) (Ho & Salimans, arXiv 2207.12598).

    As the weighted sum of two calls it is replayed part by part, so that guidance costs time, not memory; graphs that the
    unroll keeps (`--adt_memory fast`) are two for each step.

    Args:
        conditional, unconditional: the same network with the prompt's and with the empty prompt's conditioning bound.
        scale: guidance scale; 1 is the conditional prediction alone.
    """

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, scale: float) -> None:
        self.parts = ((scale, conditional), (1.0 - scale, unconditional))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided prediction `(B, C, h, w)`."""
        (weight, first), (other_weight, second) = self.parts
        return weight * first(x, t) + other_weight * second(x, t)


def parts_of(denoiser: Denoiser) -> tuple[tuple[float, Denoiser], ...]:
    """(weight, call) whose weighted sum is the denoiser's prediction."""
    return getattr(denoiser, "parts", ((1.0, denoiser),))


@dataclass
class UnrolledStep:
    """One denoiser call of the unroll.

    Attributes:
        timestep: 0-dim CPU tensor, in the scheduler's convention.
        output: the network's output o_i `(B, C, h, w)`, at least float32, a leaf with gradient if the unroll records one.
        model_input: the stopped input sg(x_i) `(B, C, h, w)`; kept for the steps that will be replayed, else None.
        seed: of the global generators during the call, so that a replay meets the same dropout.
        joined: the same output still joined to the network's parameters, if its graph was kept; else None.
    """

    timestep: Tensor
    output: Tensor
    model_input: Tensor | None
    seed: int
    joined: Tensor | None = None


@dataclass
class Unroll:
    """The unrolled path: `latents` x_0' `(B, C, h, w)` as a function of the leaves in `steps`, first to last."""

    latents: Tensor
    steps: list[UnrolledStep]


def build_scheduler(sampler: str, alphas_cumprod: Tensor, prediction_type: str, spacing: str = "auto") -> Any:
    """A deterministic diffusers scheduler on a given variance-preserving noise schedule.

    Args:
        sampler: `ddim` (also `auto`), `euler` or `dpm++` (second-order multistep).
        alphas_cumprod: the live alpha_bar of the model's training `(T,)` in [0, 1]; 0 at its end is zero terminal SNR.
        prediction_type: `epsilon` or `v_prediction`.
        spacing: `leading` (with an offset of 1, as SD ships), `trailing`, `linspace` or `auto`: leading, and trailing
            where the terminal SNR is zero, since only a grid that contains the last timestep samples such a model rightly
            (arXiv 2305.08891).

    Raises:
        ConfigError: a combination that has no meaning, by the names of the `--adt_*` flags.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    alphas_cumprod = alphas_cumprod.detach().to("cpu", torch.float32, copy=True)
    zero_terminal_snr = float(alphas_cumprod[-1]) == 0.0
    if zero_terminal_snr and prediction_type == "epsilon":
        raise ConfigError("zero terminal SNR cannot be sampled with noise prediction: train with --v_parameterization.")
    spacing = ("trailing" if zero_terminal_snr else "leading") if spacing == "auto" else spacing
    sampler = "ddim" if sampler == "auto" else sampler
    if sampler == "ddim" and spacing == "linspace":
        raise ConfigError(
            "--adt_spacing linspace is not defined for ddim: choose leading or trailing, or --adt_sampler euler or dpm++."
        )
    betas = 1.0 - alphas_cumprod.clamp_min(ALMOST_ZERO) / torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    shared = {
        "num_train_timesteps": len(alphas_cumprod),
        "trained_betas": betas.numpy(),
        "prediction_type": prediction_type,
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" else 0,
    }
    if sampler == "ddim":
        scheduler: Any = DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=True)
    else:
        classes: dict[str, Any] = {"euler": EulerDiscreteScheduler, "dpm++": DPMSolverMultistepScheduler}
        scheduler = classes[sampler](**shared)
        alphas_cumprod.clamp_min_(ALMOST_ZERO)
    scheduler.alphas_cumprod = alphas_cumprod  # exactly the model's, not its round trip through betas
    return scheduler


def build_flow_scheduler(shift: float, spacing: str) -> Any:
    """Deterministic Euler steps on a flow-matching grid, x_sigma = (1 - sigma) x_0 + sigma eps, velocity eps - x_0.

    Args:
        shift: of the grid toward noise, sigma' = shift sigma / (1 + (shift - 1) sigma) (SD3, arXiv 2403.03206, eq. 23); may
            be changed between turns by `set_shift`.
        spacing: `trailing` (evenly from 1 to 1/m before the shift) or `linspace` (to the lowest sigma of training).
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    base: Any = FlowMatchEulerDiscreteScheduler

    class ShiftedFlowScheduler(base):
        """The base class bends the ends of its own grid differently from version to version; this grid is given to it."""

        def set_shift(self, shift: float) -> None:
            self.grid_shift = shift

        def shifted(self, sigma: Any) -> Any:
            return self.grid_shift * sigma / (1 + (self.grid_shift - 1) * sigma)

        def set_timesteps(self, num_inference_steps: int, **kwargs: Any) -> None:
            lowest = 1 / num_inference_steps if spacing == "trailing" else self.shifted(1 / FLOW_TIMESTEPS)
            sigmas = torch.linspace(1.0, lowest, num_inference_steps, dtype=torch.float64)
            super().set_timesteps(sigmas=self.shifted(sigmas).tolist(), **kwargs)

    scheduler = ShiftedFlowScheduler(num_train_timesteps=FLOW_TIMESTEPS)
    scheduler.set_shift(shift)
    return scheduler


def check_grid(scheduler: Any, steps: int) -> None:
    """Refuse a grid that the scheduler cannot walk exactly.

    Raises:
        ConfigError: by the names of the `--adt_*` flags.
    """
    total = scheduler.config.num_train_timesteps
    if steps > total:
        raise ConfigError(f"--adt_steps must be at most {total}, the number of the model's training timesteps; got {steps}.")
    trial = copy.deepcopy(scheduler)
    trial.set_timesteps(steps)
    timesteps = trial.timesteps.tolist()
    highest = total - 1 if hasattr(scheduler, "alphas_cumprod") else total  # flow matching counts up to its total
    if timesteps[0] > highest or any(later >= earlier for earlier, later in zip(timesteps, timesteps[1:], strict=False)):
        raise ConfigError(f"--adt_steps {steps} gives this sampler no grid of distinct timesteps below {total}: lower it.")
    walks_by_ratio = type(scheduler).__name__ == "DDIMScheduler" and scheduler.config.timestep_spacing == "trailing"
    if walks_by_ratio and total % steps:
        raise ConfigError(f"--adt_steps must divide {total} for ddim with trailing spacing (such as 5, 8 or 10), got {steps}.")


def noised_start(scheduler: Any, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
    """Prepare `scheduler` for the last `start` of `steps` grid points and noise `clean` to the first of them.

    x_s = alpha_s x_0 + sigma_s eps (method, step 4), in the scheduler's own scaling. Noise and clean latents are
    `(B, C, h, w)`; `start` is s in 1..m.
    """
    scheduler.set_timesteps(steps)
    index = len(scheduler.timesteps) - start
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
    timesteps = scheduler.timesteps[index].expand(len(clean))
    if hasattr(scheduler, "scale_noise"):  # flow matching
        return scheduler.scale_noise(clean, timesteps, noise)
    return scheduler.add_noise(clean, noise, timesteps)


def unroll(
    denoiser: Denoiser,
    scheduler: Any,
    latents: Tensor,
    seeds: Sequence[int],
    keep: Sequence[int],
    record: bool,
    joined_denoiser: Denoiser | None = None,
) -> Unroll:
    """Walk the last `len(seeds)` points of the scheduler's grid.

    Each output is cut from the network (a leaf if `record`), and the scheduler's own chain from leaves to x_0' stays
    differentiable; the denoiser's input is stopped at every step (method, step 6).

    Args:
        latents: x_s `(B, C, h, w)` from `noised_start`, which also prepared the scheduler.
        seeds: one per step; the global generators are seeded with it before the call.
        keep: positions (0 is the first step walked) whose inputs are kept for `replay`.
        record: whether the outputs require grad.
        joined_denoiser: calls the same network for the steps in `keep`, whose graphs are then kept for `replay`; None keeps
            no graph through the network.
    """
    steps: list[UnrolledStep] = []
    timesteps = scheduler.timesteps[len(scheduler.timesteps) - len(seeds) :]
    for position, (timestep, seed) in enumerate(zip(timesteps, seeds, strict=True)):
        with torch.no_grad():
            model_input = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
            model_input = model_input.detach()
        joined = None
        if joined_denoiser is not None and position in keep:
            output = joined = call_joined(joined_denoiser, model_input, timestep, seed)
        else:
            with torch.no_grad():
                output = call_seeded(denoiser, model_input, timestep, seed)
        output = output.detach().to(torch.promote_types(output.dtype, torch.float32)).requires_grad_(record)
        with torch.set_grad_enabled(record):
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        steps.append(UnrolledStep(timestep, output, model_input if position in keep else None, seed, joined))
    return Unroll(latents, steps)


def call_joined(denoiser: Denoiser, model_input: Tensor, timestep: Tensor, seed: int) -> Tensor:
    """`call_seeded` with a graph from the parameters to the output, whatever the surrounding grad mode."""
    # A grad-requiring input: reentrant checkpointing gives outputs without grad otherwise.
    model_input = model_input.detach().requires_grad_(True)
    with torch.enable_grad():
        return call_seeded(denoiser, model_input, timestep, seed)


def call_seeded(denoiser: Denoiser, model_input: Tensor, timestep: Tensor, seed: int) -> Tensor:
    """Call the denoiser with its global generators seeded, so that the same seed gives the same dropout.

    Each part of a guided one is seeded alike: conditional and unconditional prediction come from the same network.
    """
    t = torch.full((len(model_input),), timestep.item(), dtype=timestep.dtype, device=model_input.device)
    (weight, part), *others = parts_of(denoiser)
    seed_everything(seed)
    output = part(model_input, t)
    if not others:
        return output
    output = weight * output
    for weight, part in others:
        seed_everything(seed)
        output = output + weight * part(model_input, t)
    return output
