"""The host's noise schedules, and the sampler that walks each in the unroll."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from adt_plugin.core.config import RunConfig
from adt_plugin.core.diffusion.samplers import Sampler, ShiftedFlowSampler, build_flow_sampler, build_sampler
from adt_plugin.core.errors import ConfigError

SD_TRAINING_STEPS = 1000


class Schedule(Protocol):
    """A family's noise schedule."""

    def preview(self, config: RunConfig, args: argparse.Namespace) -> Sampler:
        """Build a sampler of the kind that the run will use, before the host's own schedule exists.

        Raises:
            ConfigError: options that have no meaning for it.
        """

    def build(self, config: RunConfig, args: argparse.Namespace, noise_scheduler: Any) -> Sampler:
        """Build the run's sampler on the schedule that the host trains with (None where its noising needs none)."""

    def fit(self, sampler: Sampler, config: RunConfig, size: tuple[int, int]) -> None:
        """Fit that sampler to a batch of latents of the given height and width."""


@dataclass(frozen=True)
class DiscreteSchedule:
    """Variance-preserving noise on 1000 timesteps: Stable Diffusion 1.x, 2.x and XL.

    The live alphas_cumprod are read, not the scheduler's configuration: zero terminal SNR changes only them, and the
    prediction type is always epsilon there.
    """

    def preview(self, config: RunConfig, args: argparse.Namespace) -> Sampler:
        """Build it on a linear stand-in, which ends where the run's own will."""
        alphas_cumprod = torch.linspace(0.999, 0.0 if getattr(args, "zero_terminal_snr", False) else 0.005, SD_TRAINING_STEPS)
        return self._on(alphas_cumprod, config, args)

    def build(self, config: RunConfig, args: argparse.Namespace, noise_scheduler: Any) -> Sampler:
        """Build it on the host's own alphas_cumprod."""
        return self._on(noise_scheduler.alphas_cumprod, config, args)

    @staticmethod
    def _on(alphas_cumprod: torch.Tensor, config: RunConfig, args: argparse.Namespace) -> Sampler:
        if config.flow_shift:
            raise ConfigError("--adt_flow_shift is for flow models: leave it out.")
        prediction_type = "v_prediction" if getattr(args, "v_parameterization", False) else "epsilon"
        if prediction_type == "epsilon" and float(alphas_cumprod[-1]) == 0.0:
            raise ConfigError("zero terminal SNR cannot be sampled with noise prediction: train with --v_parameterization.")
        return build_sampler(config.sampler, alphas_cumprod, prediction_type, config.spacing)

    def fit(self, sampler: Sampler, config: RunConfig, size: tuple[int, int]) -> None:
        """Change nothing: the grid is the same at every size."""


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow: the Euler grid on which the host samples its preview images.

    Attributes:
        shift: latents' height and width -> shift of the grid.
        spacing: of the grid before the shift.
    """

    shift: Callable[[tuple[int, int]], float]
    spacing: str = "trailing"

    def preview(self, config: RunConfig, args: argparse.Namespace) -> Sampler:
        """Build the sampler itself: it takes nothing from the host."""
        if config.sampler not in ("auto", "euler"):
            raise ConfigError(f"--adt_sampler {config.sampler} is not defined for flow models: leave it out, or choose euler.")
        if config.spacing == "leading":
            raise ConfigError("--adt_spacing leading is not defined for flow models: choose trailing or linspace.")
        spacing = self.spacing if config.spacing == "auto" else config.spacing
        return build_flow_sampler(config.flow_shift or 1.0, spacing)

    def build(self, config: RunConfig, args: argparse.Namespace, noise_scheduler: Any) -> Sampler:
        """Build the same as the preview."""
        return self.preview(config, args)

    def fit(self, sampler: Sampler, config: RunConfig, size: tuple[int, int]) -> None:
        """Set the option's shift, or the host's for this size."""
        assert isinstance(sampler, ShiftedFlowSampler)  # from `preview`
        sampler.shift = config.flow_shift or self.shift(size)


def constant(shift: float) -> Callable[[tuple[int, int]], float]:
    """Return a shift that is the same at every size."""
    return lambda size: shift


def flux_shift(size: tuple[int, int]) -> float:
    """Return FLUX's shift, e^mu: mu is linear in the number of 2x2 tokens, 0.5 at 256 and 1.15 at 4096."""
    tokens = size[0] * size[1] / 4
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
