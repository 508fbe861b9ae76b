"""A turn and a run as sums of their parts, in whatever unit the parts are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adt_plugin.core.config import ADTConfig, with_guidance
from adt_plugin.core.schedule import MEASURED, TurnSchedule, count_grad_steps, start_range

RUN_STEPS = 2000
"""Optimizer steps of the run that tables and curves speak of."""


@dataclass(frozen=True)
class Parts:
    """What each part costs alone: floating-point operations, or seconds.

    Attributes:
        forward: a denoiser call without gradient.
        step: forward and backward, as of the host's own step and of a replayed one.
        decode_real: without gradient.
        decode_generated: with its backward.
        judge: three backbone passes, the gradient at the images, the heads' step.
    """

    forward: float
    step: float
    decode_real: float
    decode_generated: float
    judge: float


@dataclass(frozen=True)
class Share:
    """A line of the sum.

    Attributes:
        name: of the part.
        times: how often, on average.
        total: what that costs.
    """

    name: str
    times: float
    total: float


def calls_per_step(config: ADTConfig) -> int:
    """Return the denoiser calls in one step of the unroll: guidance needs two, of which one is trained."""
    return 2 if config.guidance_scales[1] > 1 else 1


def turn_shares(parts: Parts, config: ADTConfig, start: int) -> Iterator[Share]:
    """Yield the parts of a turn that unrolls `start` steps."""
    calls, trained = calls_per_step(config), count_grad_steps(config, start)
    yield Share("unroll: denoiser forwards", calls * start, calls * start * parts.forward)
    if config.memory == "fast":
        yield Share("backward through kept graphs", trained, trained * (parts.step - parts.forward))
    else:  # a joined turn runs the trained steps again, too
        yield Share("replay: denoiser forwards and backwards", trained, trained * parts.step)
    yield Share("decode of the generated image, and its backward", 1, parts.decode_generated)
    yield Share("decode of the real image", 1, parts.decode_real)
    yield Share("backbone and heads", 1, parts.judge)


def mean_turn(parts: Parts, config: ADTConfig) -> list[Share]:
    """Return the parts of a turn, on average over the starts that the options allow."""
    low, high = start_range(config)
    turns = [list(turn_shares(parts, config, start)) for start in range(low, high + 1)]
    return [
        Share(lines[0].name, sum(s.times for s in lines) / len(turns), sum(s.total for s in lines) / len(turns))
        for lines in zip(*turns, strict=True)
    ]


def total(shares: list[Share]) -> float:
    """Add the totals."""
    return sum(share.total for share in shares)


def warmup_turn(parts: Parts, config: ADTConfig) -> float:
    """Return the cost of a turn of the warm-up, which trains the discriminator alone; its judgement counts as a whole one."""
    low, high = start_range(config)
    return calls_per_step(config) * (low + high) / 2 * parts.forward + 2 * parts.decode_real + parts.judge


def run_ratio(parts: Parts, config: ADTConfig, steps: int) -> float:
    """Return the cost of a run of so many optimizer steps over that of one without `--adt`; no other work counts in either."""
    turns = TurnSchedule.from_config(config, steps).count(steps)
    cost = turns.warmup * warmup_turn(parts, config) + turns.adversarial * total(mean_turn(parts, config))
    cost += min(MEASURED, turns.warmup) * (parts.decode_generated - parts.decode_real)  # their gradient reaches the images
    return 1 + cost / (steps * parts.step)


@dataclass(frozen=True)
class Counted:
    """What `cost` has counted for one model, in TFLOP, so that a run can say at once about what it will cost.

    Of a LoRA with gradient checkpointing, one image at a time, with a backbone of DINOv2-base's size.

    Attributes:
        title: of the model.
        resolution: side of the images in pixels.
        forward: of the denoiser.
        step: sd-scripts' own.
        decode: of a crop of `CROP` pixels, without gradient.
        decode_backward: the same with its backward pass.
        cfg_scale: guidance of turns with `--adt_cfg_scale auto`: that of the small Stable Diffusion (docs/benchmarks.md) for
            every model whose previews sd-scripts makes with guidance, none for what is distilled to need none.
    """

    title: str
    resolution: int
    forward: float
    step: float
    decode: float = 0.622
    decode_backward: float = 1.527
    cfg_scale: float = 3.0

    def parts(self, config: ADTConfig, trains_all: bool, checkpointing: bool) -> Parts:
        """Return the parts of a run's steps and turns.

        Args:
            trains_all: all weights are trained, not a LoRA; their gradients cost most of a forward pass more.
            checkpointing: the denoiser's, which repeats a forward pass in every backward pass.
        """
        side = min(config.decode_crop or self.resolution, self.resolution)
        area = (side / CROP) ** 2
        step = self.step + self.forward * (0.8 * trains_all - (not checkpointing))
        return Parts(self.forward, step, area * self.decode, area * self.decode_backward, JUDGE)


CROP = ADTConfig().decode_crop
"""Side in pixels of the crops of `COUNTED`."""

JUDGE = 0.275
"""TFLOP of three passes of the backbone and of the heads."""

COUNTED = {
    "sd15": Counted("Stable Diffusion 1.5", 512, 0.813, 2.451),
    "sdxl": Counted("SDXL", 1024, 6.850, 20.852),
    "sd3": Counted("SD3-medium", 1024, 8.998, 31.415),
    "flux": Counted("FLUX.1", 1024, 74.832, 247.216, cfg_scale=1.0),
    "chroma": Counted("Chroma", 1024, 74.804, 246.868),
    "lumina": Counted("Lumina Image 2.0", 1024, 22.325, 73.934),
    "anima": Counted("Anima", 1024, 18.081, 60.766, 0.706, 1.767),
    "hunyuan": Counted("HunyuanImage-2.1", 2048, 120.726, 397.951, 0.670, 1.637),
}
"""Every model of `cost` by its name there; a test counts them again."""


def as_sampled(config: ADTConfig, model: str) -> ADTConfig:
    """Return options whose `--adt_cfg_scale auto` is settled for a model of `COUNTED`; without guidance for any other."""
    return with_guidance(config, COUNTED[model].cfg_scale if model in COUNTED else 1.0)
