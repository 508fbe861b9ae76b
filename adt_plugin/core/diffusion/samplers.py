"""Samplers: diffusers schedulers, each with the little that a walk along a part of its grid needs.

No sampler's formula is written here: the grid, the noising, the input scaling, the step and what a prediction means (noise, v
or flow velocity) are the scheduler's own. A new sampler is an entry in `SAMPLERS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adt_plugin.core.errors import ConfigError

FLOW_TIMESTEPS = 1000
"""Flow-matching schedulers count their time sigma in [0, 1] in thousandths."""

ALMOST_ZERO = 2.0**-24
"""Stands for a terminal alpha_bar of exactly 0 where a sampler works in sigma = sqrt((1 - a) / a) (diffusers' own choice)."""


class Sampler:
    """A scheduler that keeps no count of its steps, such as diffusers' DDIM, on a variance-preserving noise schedule.

    Args:
        scheduler: of diffusers, deterministic, its `step` differentiable; used by nobody else.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    @property
    def timesteps(self) -> Tensor:
        """The grid `(m,)` on the CPU, from noise to image, in the scheduler's own convention; after `prepare`."""
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps

    @property
    def last_timestep(self) -> int:
        """The highest timestep that a grid may hold."""
        return self.training_steps - 1

    @property
    def training_steps(self) -> int:
        """Timesteps that the model was trained on."""
        return int(self.scheduler.config.num_train_timesteps)

    def prepare(self, steps: int, start: int) -> None:
        """Lay a grid of `steps` points, to walk its last `start` ones."""
        self.scheduler.set_timesteps(steps)

    def add_noise(self, clean: Tensor, noise: Tensor, start: int) -> Tensor:
        """Return x_s = alpha_s x_0 + sigma_s eps in the scheduler's own scaling, for s = `start`; all `(B, C, h, w)`.

        alpha_s and sigma_s are what its own noising makes of one and zero on the CPU: given the latents themselves it would
        copy its tables to their device, and the program would wait for every copy.
        """
        one, zero = torch.ones(1, dtype=clean.dtype), torch.zeros(1, dtype=clean.dtype)
        alpha, sigma = (self._noised(*pair, start).squeeze() for pair in ((one, zero), (zero, one)))
        return alpha * clean + sigma * noise

    def _noised(self, clean: Tensor, noise: Tensor, start: int) -> Tensor:
        """Return the scheduler's own noising."""
        noised: Tensor = self.scheduler.add_noise(clean, noise, self._first_timestep(len(clean), start))
        return noised

    def scale_model_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Return what the denoiser is given for latents of this timestep."""
        scaled: Tensor = self.scheduler.scale_model_input(latents, timestep)
        return scaled

    def step(self, output: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return x_{i-1} = S(x_i, o_i), differentiable in both."""
        stepped: Tensor = self.scheduler.step(output, timestep, latents, return_dict=False)[0]
        return stepped

    def output_weights(self, start: int) -> list[float]:
        """Return |dx_0'/do_i| of every step of a walk along the last `start` points of the grid that was laid, first to last.

        A deterministic linear sampler's result is linear in every output, with one number per step: found by walking a copy
        of the sampler with latents of a single element.
        """
        walker = copy.deepcopy(self)
        timesteps = walker.timesteps[len(walker.timesteps) - start :]
        latents, outputs = torch.zeros(1, 1, 1, 1), [torch.zeros(1, 1, 1, 1, requires_grad=True) for _ in timesteps]
        with torch.enable_grad():
            for timestep, output in zip(timesteps, outputs, strict=True):
                latents = walker.step(output, timestep, latents)
        return [abs(float(weight)) for weight in torch.autograd.grad(latents.sum(), outputs)]

    def check_grid(self, steps: int) -> None:
        """Refuse a number of steps whose grid cannot be walked exactly.

        Raises:
            ConfigError: by the names of the `--adt_*` flags.
        """
        total = self.training_steps
        if steps > total:
            raise ConfigError(
                f"--adt_steps must be at most {total}, the number of the model's training timesteps; got {steps}."
            )
        trial = copy.deepcopy(self)
        trial.prepare(steps, steps)
        timesteps = trial.timesteps.tolist()
        falls = all(later < earlier for earlier, later in zip(timesteps, timesteps[1:], strict=False))
        if timesteps[0] > self.last_timestep or not falls:
            raise ConfigError(f"--adt_steps {steps} gives this sampler no grid of distinct timesteps below {total}: lower it.")

    def _first_timestep(self, batch: int, start: int) -> Tensor:
        return self.timesteps[len(self.timesteps) - start].expand(batch)


class DDIMSampler(Sampler):
    """DDIM (arXiv 2010.02502), eta 0."""

    def check_grid(self, steps: int) -> None:
        """Refuse what every sampler refuses, and trailing grids that DDIM's steps of one length do not meet.

        Raises:
            ConfigError: by the names of the `--adt_*` flags.
        """
        super().check_grid(steps)
        if self.scheduler.config.timestep_spacing == "trailing" and self.training_steps % steps:
            raise ConfigError(
                f"--adt_steps must divide {self.training_steps} for ddim with trailing spacing (such as 5, 8 or 10), "
                f"got {steps}."
            )


class IndexedSampler(Sampler):
    """A scheduler that counts its own steps, such as diffusers' Euler and DPM-Solver++."""

    def prepare(self, steps: int, start: int) -> None:
        """Lay a grid, and set the scheduler's count to the first point that is walked."""
        super().prepare(steps, start)
        # diffusers before 0.27 has no such method and finds the point by its timestep
        set_begin_index = getattr(self.scheduler, "set_begin_index", lambda index: None)
        set_begin_index(len(self.timesteps) - start)


class DpmSampler(IndexedSampler):
    """Second-order multistep DPM-Solver++ (arXiv 2211.01095), down to the image itself."""

    def prepare(self, steps: int, start: int) -> None:
        """Lay a grid that ends without noise: diffusers before 0.26 lets it end at the first timestep's."""
        super().prepare(steps, start)
        self.scheduler.sigmas[-1] = 0.0


class FlowSampler(IndexedSampler):
    """A flow-matching scheduler: x_sigma = (1 - sigma) x_0 + sigma eps, velocity eps - x_0, time sigma * 1000."""

    @property
    def last_timestep(self) -> int:
        """The timestep of pure noise, which flow matching counts."""
        return self.training_steps

    def _noised(self, clean: Tensor, noise: Tensor, start: int) -> Tensor:
        """Return (1 - sigma_s) x_0 + sigma_s eps."""
        noised: Tensor = self.scheduler.scale_noise(clean, self._first_timestep(len(clean), start), noise)
        return noised

    def scale_model_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Return the latents themselves."""
        return latents


class ShiftedFlowSampler(FlowSampler):
    """Euler steps on a grid of its own: the scheduler bends the ends of its grid differently from version to version.

    Args:
        scheduler: diffusers' `FlowMatchEulerDiscreteScheduler`, without a shift.
        shift: of the grid toward noise, sigma' = shift sigma / (1 + (shift - 1) sigma) (SD3, arXiv 2403.03206, eq. 23); may
            be changed between turns.
        spacing: `trailing` (evenly from 1 to 1/m before the shift) or `linspace` (to the lowest sigma of training).
    """

    def __init__(self, scheduler: Any, shift: float, spacing: str) -> None:
        super().__init__(scheduler)
        self.shift, self.spacing = shift, spacing

    def prepare(self, steps: int, start: int) -> None:
        """Lay the shifted grid, and set the scheduler's count to the first point that is walked."""
        lowest = 1 / steps if self.spacing == "trailing" else self._shifted(1 / FLOW_TIMESTEPS)
        sigmas = torch.linspace(1.0, lowest, steps, dtype=torch.float64)
        self.scheduler.set_timesteps(sigmas=self._shifted(sigmas).tolist())
        self.scheduler.set_begin_index(steps - start)

    def _shifted(self, sigma: Any) -> Any:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


def _ddim(settings: dict[str, Any]) -> Sampler:
    from diffusers import DDIMScheduler

    if settings["timestep_spacing"] == "linspace":
        raise ConfigError(
            "--adt_spacing linspace is not defined for ddim: choose leading or trailing, or --adt_sampler euler or dpm++."
        )
    return DDIMSampler(DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=True))


def _euler(settings: dict[str, Any]) -> Sampler:
    from diffusers import EulerDiscreteScheduler

    return IndexedSampler(EulerDiscreteScheduler(**settings))


def _dpm_solver(settings: dict[str, Any]) -> Sampler:
    from diffusers import DPMSolverMultistepScheduler

    # A last step of the first order, which a grid without noise at its end needs: newer diffusers know that by themselves.
    return DpmSampler(DPMSolverMultistepScheduler(**settings, euler_at_final=True))


SAMPLERS: dict[str, Callable[[dict[str, Any]], Sampler]] = {"ddim": _ddim, "euler": _euler, "dpm++": _dpm_solver}
"""By `--adt_sampler`: made from the keyword arguments that all of diffusers' schedulers share."""


def build_sampler(name: str, alphas_cumprod: Tensor, prediction_type: str, spacing: str = "auto") -> Sampler:
    """Build a deterministic sampler on a given variance-preserving noise schedule.

    Args:
        name: of `SAMPLERS`, or `auto`, which is ddim.
        alphas_cumprod: the live alpha_bar of the model's training `(T,)` in [0, 1]; 0 at its end is zero terminal SNR.
        prediction_type: `epsilon` or `v_prediction`.
        spacing: `leading` (with an offset of 1, as SD ships), `trailing`, `linspace` or `auto`: leading, and trailing
            where the terminal SNR is zero, since only a grid that contains the last timestep samples such a model rightly
            (arXiv 2305.08891).

    Raises:
        ConfigError: a combination that has no meaning, by the names of the `--adt_*` flags.
    """
    alphas_cumprod = alphas_cumprod.detach().to("cpu", torch.float32, copy=True)
    zero_terminal_snr = float(alphas_cumprod[-1]) == 0.0
    if zero_terminal_snr and prediction_type == "epsilon":
        raise ConfigError("zero terminal SNR cannot be sampled with noise prediction: use a model that predicts v.")
    spacing = ("trailing" if zero_terminal_snr else "leading") if spacing == "auto" else spacing
    betas = 1.0 - alphas_cumprod.clamp_min(ALMOST_ZERO) / torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    sampler = SAMPLERS["ddim" if name == "auto" else name](
        {
            "num_train_timesteps": len(alphas_cumprod),
            "trained_betas": betas.numpy(),
            "prediction_type": prediction_type,
            "timestep_spacing": spacing,
            "steps_offset": 1 if spacing == "leading" else 0,
        }
    )
    if not isinstance(sampler, DDIMSampler):  # the others divide by alpha
        alphas_cumprod.clamp_min_(ALMOST_ZERO)
    sampler.scheduler.alphas_cumprod = alphas_cumprod  # exactly the model's, not its round trip through betas
    return sampler


def build_flow_sampler(shift: float, spacing: str) -> ShiftedFlowSampler:
    """Build deterministic Euler steps for flow matching; arguments as for `ShiftedFlowSampler`."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return ShiftedFlowSampler(FlowMatchEulerDiscreteScheduler(num_train_timesteps=FLOW_TIMESTEPS), shift, spacing)
