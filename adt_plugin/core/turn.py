"""One adversarial turn: generator side, discriminator side, balance, schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig, ConfigError
from adt_plugin.core.diffusion import gradient_path, sampling
from adt_plugin.core.diffusion.balance import GradientBalance, at_least_float32
from adt_plugin.core.diffusion.memory import GraphMemory
from adt_plugin.core.diffusion.sampling import Denoiser, Unroll
from adt_plugin.core.discriminator import Discriminator, Observation
from adt_plugin.core.discriminator.losses import discriminator_hinge, generator_loss
from adt_plugin.core.distributed import all_finite, average_gradients, averaged, joined_norm, rank, true_everywhere
from adt_plugin.core.images.crop import draw_window
from adt_plugin.core.images.offload import Offload
from adt_plugin.core.rng import draw_seed, preserved_rng

STAGES = ("unroll", "decode", "observe", "gradient", "replay", "discriminator")


@dataclass
class TurnReport:
    """What happened in a turn; numbers are plain Python floats, and with several processes those of the joined batch.

    Attributes:
        turn: counts from 1.
        warmup: the discriminator trained alone.
        start: s in 1..m, the number of steps unrolled.
        masked: positions in the unroll (0 is the first step walked) that carried gradient.
        loss_g, loss_d: losses of the two sides; loss_d is 2 at chance.
        score_real, score_gen: mean scores of positive and negative pairs.
        grad_norm: of the adversarial gradient at the denoiser's output, as applied; 0 when none was.
        grad_norm_raw: the same before balancing; grad_norm_diffusion: running mean of the diffusion loss's.
        step_grad_norms: norm of dL_G/do_i for every step walked, before balancing; empty in the warm-up.
        skipped: a gradient of either side was not finite, in any process, and both sides' were dropped in all.
        seconds: wall time per stage, if the configuration asks for it.
        gen, real, scores: `(B, 3, H, W)` images and per-pair scores of generated images `(B,)`, for pictures.
    """

    turn: int
    warmup: bool
    start: int
    masked: list[int]
    loss_g: float
    loss_d: float
    score_real: float
    score_gen: float
    grad_norm: float
    grad_norm_raw: float
    grad_norm_diffusion: float
    step_grad_norms: list[float]
    skipped: bool
    seconds: dict[str, float]
    gen: Tensor = field(repr=False)
    real: Tensor = field(repr=False)
    scores: Tensor = field(repr=False)


@dataclass
class _AppliedGradient:
    """The generator side's outcome, still on the device."""

    raw: Tensor
    applied: Tensor
    by_step: Tensor
    masked: list[int]
    vectors: dict[int, Tensor]


@dataclass
class _Judged:
    """A walked path, decoded and scored, and both sides' gradients; all still on the device.

    Attributes:
        applied: of the generator side; None where no step carries gradient.
        loss_d, score_real: of the discriminator side, whose gradient is in its parameters.
        sound: whether both gradients are finite, in every process.
    """

    path: Unroll
    gen: Tensor
    real: Tensor
    scores: Tensor
    loss_g: Tensor
    applied: _AppliedGradient | None
    loss_d: Tensor
    score_real: Tensor
    sound: bool


class StageClock:
    """Wall time per stage of a turn, on demand: it synchronises the device at every stage's ends."""

    def __init__(self, enabled: bool, device: torch.device) -> None:
        self.enabled, self.device = enabled, device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's wall time to the named stage."""
        began = self.now()
        try:
            yield
        finally:
            if self.enabled:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - began

    def now(self) -> float:
        """Seconds on a clock of unknown zero, after everything queued on the device has run."""
        if self.enabled and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class AdversarialTurn:
    """Adversarial supervision of what a sampler produces, for any training loop of a diffusion model.

    One object per run. Use it after the diffusion loss's backward and before the optimizer's step:

        turn = AdversarialTurn(config, scheduler=scheduler, decode=decode, discriminator=discriminator)
        for latents, condition in data:
            prediction = denoiser(noisy_latents, timesteps, condition)
            turn.watch(prediction)                                  # for the balance of the two gradients
            accelerator.backward(mse_loss(prediction, noise))
            report = turn(lambda x, t: denoiser(x, t, condition), latents, backward=accelerator.backward)
            optimizer.step()
            optimizer.zero_grad()

    The turn adds its gradient to `p.grad`, so that clipping, accumulation and the optimizer act on the sum. It draws from
    its own generators and leaves the global ones as it found them. Its own optimizer trains the discriminator's heads.

    Args:
        config: the `--adt_*` options. `sampler` and `spacing` are for whoever builds the scheduler, `backbone`, `blocks`,
            `disc_type`, `disc_width`, `augment`, `noise`, `image_size` and `decode_dtype` for whoever builds the discriminator
            and the decode function, `pictures_every` for a `Monitor`: they are not read here. `every` acts through `due`.
        scheduler: a diffusers scheduler, from `build_scheduler` or your own, used by nobody else.
        decode: latents `(B, C, h, w)` -> images `(B, 3, H, W)` in [-1, 1], differentiable.
        discriminator: on the device where the turn runs.
        timestep_range: only steps whose timestep lies in [low, high) carry gradient; None allows all.
        latent_pixels: pixels to one latent along a side of what `decode` gives; for `decode_crop` alone.
        decoder: the module behind `decode`; for `offload` alone, which keeps it and the backbone on the CPU between turns.

    Raises:
        ConfigError: the scheduler cannot walk the configured grid, or no start is left by the configured range.
    """

    def __init__(
        self,
        config: ADTConfig,
        *,
        scheduler: Any,
        decode: Callable[[Tensor], Tensor],
        discriminator: Discriminator,
        timestep_range: tuple[float, float] | None = None,
        latent_pixels: int = 8,
        decoder: nn.Module | None = None,
    ) -> None:
        sampling.check_grid(scheduler, config.steps)
        self.config, self.scheduler, self.decode, self.discriminator = config, scheduler, decode, discriminator
        self.timestep_range, self.latent_pixels = timestep_range, latent_pixels
        self.starts = start_range(config)
        self.balance = GradientBalance(config.balance, config.weight, config.max_grad_ratio)
        self.memory = GraphMemory(config)
        self.offload = Offload([module for module in (decoder, discriminator.backbone) if module is not None], config.offload)
        self.optimizer = torch.optim.AdamW(
            discriminator.parameters(), lr=config.disc_lr, betas=config.beta_pair, weight_decay=0.0
        )
        self.path_generator = torch.Generator().manual_seed(config.seed)  # the same draws on every process
        self.noise_generator = torch.Generator().manual_seed(config.seed + 1_000_003 * (1 + rank()))
        discriminator.generator.manual_seed(config.seed + 7_000_003 * (1 + rank()))
        self.turns = 0

    def due(self, step: int) -> bool:
        """Whether the optimizer step of this number (from 0) has a turn: all in the warm-up, then one in `--adt_every`."""
        return self.warming_up or step % self.config.every == 0

    @property
    def warming_up(self) -> bool:
        """Whether the next turn trains the discriminator alone."""
        return self.turns < self.config.warmup

    def watch(self, prediction: Tensor, loss_scale: float = 1.0) -> None:
        """Note the norm of the diffusion loss's gradient at the denoiser's output, when its backward comes.

        Args:
            prediction: the denoiser's output in the diffusion loss, of any shape; not changed.
            loss_scale: factor by which the backward pass multiplies the loss (gradient scaler, 1 / accumulation steps).
        """
        if prediction.requires_grad:
            # A collective inside the backward: it is every process's first there, before any of DistributedDataParallel's.
            prediction.register_hook(lambda grad: self.balance.diffusion.update(self._joined_norm_of(grad, loss_scale)))

    @staticmethod
    def _joined_norm_of(gradient: Tensor, loss_scale: float) -> Tensor:
        return joined_norm(at_least_float32(gradient).norm() / loss_scale)

    def __call__(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        real: Tensor | None = None,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
        unroll_denoiser: Denoiser | None = None,
        overflowed: Callable[[], bool] | None = None,
    ) -> TurnReport:
        """Run one turn.

        Args:
            denoiser: the network with its conditioning bound, called with the scheduler's timesteps `(B,)`.
            latents: clean latents x_0 of the training images `(B, C, h, w)`, as the denoiser's noising sees them.
            real: the training images `(B, 3, H, W)` in [-1, 1]; None decodes `latents`, so that both images of a pair went
                through the same decoder.
            backward: as `accelerator.backward`, so that loss scaling and accumulation apply to the replayed steps.
            unroll_denoiser: a cheaper way to call the same network without gradient; None uses `denoiser`.
            overflowed: asked after the replay, whether the loop's loss scaler has an infinity in `p.grad` and will skip its
                step; the heads then skip theirs.
        """
        clock = StageClock(self.config.profile, latents.device)
        clean = at_least_float32(latents.detach())
        with preserved_rng(), torch.enable_grad():
            with clock.stage("unroll"):
                joined = denoiser if self.memory.keeps_graphs(clean) else None
                record = self.config.weight > 0 and not self.warming_up
                path, masked = self._unroll(unroll_denoiser or denoiser, clean, record, joined)
            judged = self._judged(path, masked, clean, real, clock)
            if judged.applied is not None and judged.sound:
                with clock.stage("replay"):
                    backward = self.memory.measuring(backward, denoiser, clean)
                    gradient_path.replay(denoiser, path, judged.applied.vectors, backward)
            with clock.stage("discriminator"):
                if judged.sound and not (overflowed is not None and self._overflowed_anywhere(overflowed, clean.device)):
                    self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.turns += 1
        return self._report(judged, clock)

    def _unroll(
        self, denoiser: Denoiser, clean: Tensor, record: bool, joined_denoiser: Denoiser | None = None
    ) -> tuple[Unroll, list[int]]:
        """Draw the start and the mask, and walk the path (method, steps 4 and 6); an empty mask records no graph."""
        low, high = self.starts
        start = int(torch.randint(low, high + 1, (1,), generator=self.path_generator))
        noise = torch.randn(clean.shape, generator=self.noise_generator, dtype=clean.dtype).to(clean.device, non_blocking=True)
        noised = sampling.noised_start(self.scheduler, clean, noise, self.config.steps, start)
        candidates = self._trainable_positions(start)
        masked = gradient_path.choose_mask(self.config.grad_mask, candidates, self.config.grad_steps, self.path_generator)
        masked = masked if record else []
        seeds = [draw_seed(self.noise_generator) for _ in range(start)]
        return sampling.unroll(denoiser, self.scheduler, noised, seeds, masked, bool(masked), joined_denoiser), masked

    def _trainable_positions(self, start: int) -> list[int]:
        if self.timestep_range is None:
            return list(range(start))
        low, high = self.timestep_range
        walked = self.scheduler.timesteps[len(self.scheduler.timesteps) - start :].tolist()
        return [position for position, timestep in enumerate(walked) if low <= timestep < high]

    def _images(self, generated: Tensor, clean: Tensor, real: Tensor | None, adversarial: bool) -> tuple[Tensor, Tensor]:
        """Generated and real images `(B, 3, H, W)`, both of the same window; the generated ones with their graph if asked.

        The real ones come first, so that no graph of the decoder lies in memory meanwhile.
        """
        crop = self.config.decode_crop
        side = max(1, crop // self.latent_pixels) if crop else 0
        window = draw_window(clean.shape[-2], clean.shape[-1], side, self.noise_generator)
        with torch.no_grad():
            real = self.decode(window.of(clean)) if real is None else window.of(real, self.latent_pixels)
        with torch.set_grad_enabled(adversarial):
            return self.decode(window.of(generated)), real

    def _judged(self, path: Unroll, masked: list[int], clean: Tensor, real: Tensor | None, clock: StageClock) -> _Judged:
        """Decode, score, and both sides' gradients; decoder and backbone are needed here alone."""
        adversarial, applied = bool(masked), None
        with self.offload.resident(clean.device):
            with clock.stage("decode"):
                gen, real = self._images(path.latents, clean, real, adversarial)
            with clock.stage("observe"):
                observed = self.discriminator.observe(gen, real)
                with torch.set_grad_enabled(adversarial):
                    scores = self.discriminator.score_gen(observed)
                    loss_g = generator_loss(scores)
            if adversarial:
                with clock.stage("gradient"):
                    applied = self._balanced_gradients(loss_g, path, masked)
        with clock.stage("discriminator"):
            loss_d, score_real = self._discriminator_gradients(observed.detached())
            sound = self._is_sound(loss_d, applied)
        return _Judged(path, gen.detach(), real, scores.detach(), loss_g.detach(), applied, loss_d, score_real, sound)

    def _balanced_gradients(self, loss_g: Tensor, path: Unroll, masked: list[int]) -> _AppliedGradient:
        """dL_G/do_i of the masked steps, scaled and bounded by their norm over the joined batch."""
        gradients = gradient_path.leaf_gradients(loss_g, path)
        by_step = joined_norm(torch.stack([gradient.norm() for gradient in gradients]))
        raw = by_step[masked].norm()
        factor = self.balance.scale(raw)
        return _AppliedGradient(raw, raw * factor, by_step, masked, {i: gradients[i] * factor for i in masked})

    def _discriminator_gradients(self, observed: Observation) -> tuple[Tensor, Tensor]:
        """The hinge's gradient in the heads, of the joined batch; returns the loss and the mean score of positive pairs."""
        score_real, score_gen = self.discriminator.scores(observed)
        loss = discriminator_hinge(score_real, score_gen)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.discriminator.parameters())
        return loss.detach(), score_real.detach().mean()

    def _is_sound(self, loss_d: Tensor, applied: _AppliedGradient | None) -> bool:
        """Whether both sides' gradients are finite. If not, neither is used: the replay would multiply even a gradient of
        zero by whatever made the path overflow.

        Everything asked here is of the joined batch, so that every process decides alike. Waits for the device, once.
        """
        finite = all_finite(self.discriminator.parameters()) & averaged(loss_d).isfinite()
        return bool(finite if applied is None else finite & applied.raw.isfinite().to(finite.device))

    @staticmethod
    def _overflowed_anywhere(overflowed: Callable[[], bool], device: torch.device) -> bool:
        """Whether any process's loss scaler will skip the step. Waits for the device."""
        return not true_everywhere(torch.tensor(not overflowed(), device=device))

    def _report(self, judged: _Judged, clock: StageClock) -> TurnReport:
        """Fetch all numbers from the device at once."""
        zero = torch.zeros_like(judged.loss_d)
        applied, diffusion = judged.applied, self.balance.diffusion.value
        raw, used = (applied.raw, applied.applied if judged.sound else zero) if applied else (zero, zero)
        heads = [judged.loss_g, judged.loss_d, judged.score_real, judged.scores.mean(), used, raw]
        heads.append(zero if diffusion is None else diffusion)
        by_step = list(applied.by_step) if applied else []
        numbers = averaged(torch.stack([n.detach().float().to(zero.device) for n in heads + by_step])).tolist()
        loss_g, loss_d, score_real, score_gen, grad_norm, grad_norm_raw, grad_norm_diffusion, *step_grad_norms = numbers
        return TurnReport(
            turn=self.turns,
            warmup=self.turns <= self.config.warmup,
            start=len(judged.path.steps),
            masked=applied.masked if applied else [],
            loss_g=loss_g,
            loss_d=loss_d,
            score_real=score_real,
            score_gen=score_gen,
            grad_norm=grad_norm,
            grad_norm_raw=grad_norm_raw,
            grad_norm_diffusion=grad_norm_diffusion,
            step_grad_norms=step_grad_norms,
            skipped=not judged.sound,
            seconds=clock.seconds,
            gen=judged.gen,
            real=judged.real,
            scores=judged.scores,
        )


def start_range(config: ADTConfig) -> tuple[int, int]:
    """Lowest and highest start s in 1..m that the configured fractions of the grid allow.

    Raises:
        ConfigError: none is left.
    """
    low = max(1, math.ceil(config.start_min * config.steps - 1e-9))
    high = math.floor(config.start_max * config.steps + 1e-9)
    if low > high:
        raise ConfigError(
            f"--adt_start_min {config.start_min:g} and --adt_start_max {config.start_max:g} leave no start on a grid of "
            f"{config.steps} steps: widen the range or raise --adt_steps."
        )
    return low, high
