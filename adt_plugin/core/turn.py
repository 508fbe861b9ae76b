"""One adversarial turn: the method's equations, in order (docs/method.md, 'What happens in a turn')."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from adt_plugin.core.config import TurnConfig
from adt_plugin.core.diffusion import unroll as unrolling
from adt_plugin.core.diffusion.balance import GradientBalance, at_least_float32
from adt_plugin.core.diffusion.denoiser import Denoiser, at_scale, scale_of
from adt_plugin.core.diffusion.gradient_path import WEIGHING, Backward, Candidate, choose_grad_positions, leaf_gradients, replay
from adt_plugin.core.diffusion.memory import GraphMemory
from adt_plugin.core.diffusion.passes import passes_for
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import NoisedStart, Unroll, UnrollFunction
from adt_plugin.core.discriminator import Discriminator, PairFeatures
from adt_plugin.core.discriminator.history import FeatureHistory, packed
from adt_plugin.core.discriminator.likeness import WindowSets, feature_distance, pooled
from adt_plugin.core.discriminator.losses import LOSSES
from adt_plugin.core.distributed import all_finite, all_reduce_mean, all_reduce_norm, any_process, rank
from adt_plugin.core.handover import GeneratorGradients, Outcome, Seen
from adt_plugin.core.images.crop import Crop, draw_crop
from adt_plugin.core.images.mask import draw_crop_on, paste, resized
from adt_plugin.core.images.offload import Offload
from adt_plugin.core.report import StageClock, TurnReport, fetch
from adt_plugin.core.rng import draw_seed, preserved_rng
from adt_plugin.core.schedule import Phase, TurnSchedule, start_range
from adt_plugin.core.stages import Decode, decode_generated, decode_real, discriminator_gradients, score_generated


class AdversarialTurn:
    """Adversarial supervision of what a sampler produces, for any training loop of a diffusion model.

    One object per run. Use it after the diffusion loss's backward and before the optimizer's step:

        turn = AdversarialTurn(config, sampler=sampler, decode=decode, discriminator=discriminator)
        for step, (latents, condition) in enumerate(data):
            prediction = denoiser(noisy_latents, timesteps, condition)
            turn.watch(prediction)                                  # for the balance of the two gradients
            accelerator.backward(mse_loss(prediction, noise))
            if turn.due(step):
                report = turn(lambda x, t: denoiser(x, t, condition), latents, backward=accelerator.backward)
            optimizer.step()
            optimizer.zero_grad()

    A loop that allows one backward pass only (`--adt_memory joined`) hands its loss over instead of pulling it back:

        turn.measure(loss, prediction)                              # in place of watch
        if turn.due(step):
            report = turn(denoiser_of(condition), latents, backward=accelerator.backward, loss=loss)
        else:
            accelerator.backward(loss)

    The turn adds its gradient to `p.grad`, so that clipping, accumulation and the optimizer act on the sum. It draws from
    its own generators and leaves the global ones as it found them. Its own optimizer trains the discriminator's heads.

    Args:
        config: the options that a turn reads.
        sampler: from `build_sampler`, or around a diffusers scheduler of your own; used by nobody else.
        decode: latents `(B, C, h, w)` -> images `(B, 3, H, W)` in [-1, 1], differentiable.
        discriminator: on the device where the turn runs.
        timestep_range: only steps whose timestep lies in [low, high) carry gradient; None allows all.
        latent_pixels: pixels to one latent along a side of what `decode` gives; for `decode_crop` alone.
        decoder: the module behind `decode`; for `offload` alone, which keeps it and the backbone on the CPU between turns.
        schedule: when there are turns; None is from the first step on.
        noised_start, unroll: how a path begins and how it is walked; for experiments.

    Raises:
        ConfigError: the sampler cannot walk the configured grid, or no start is left by the configured range.
    """

    def __init__(
        self,
        config: TurnConfig,
        *,
        sampler: Sampler,
        decode: Decode,
        discriminator: Discriminator,
        timestep_range: tuple[float, float] | None = None,
        latent_pixels: int = 8,
        decoder: nn.Module | None = None,
        schedule: TurnSchedule | None = None,
        noised_start: NoisedStart = unrolling.noised_start,
        unroll: UnrollFunction = unrolling.unroll,
    ) -> None:
        sampler.check_grid(config.steps)
        self.config, self.sampler, self.decode, self.discriminator = config, sampler, decode, discriminator
        self.loss, self.history = LOSSES[config.disc_loss], FeatureHistory()
        self.windows = WindowSets()
        self.timestep_range, self.latent_pixels = timestep_range, latent_pixels
        self.noised_start, self.unroll = noised_start, unroll
        self.schedule, self.starts = schedule or TurnSchedule(config.warmup, config.every), start_range(config)
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

    def phase(self, step: int) -> Phase:
        """Return the phase of the next batch, which belongs to the optimizer step of this number (from 0)."""
        return self.schedule.phase(step, self.turns)

    def due(self, step: int) -> bool:
        """Return whether the next batch, of the optimizer step of this number (from 0), has a turn."""
        return self.schedule.due(step, self.turns)

    def watch(self, prediction: Tensor, loss_scale: Tensor | float = 1.0) -> None:
        """Note the norm of the diffusion loss's gradient at the denoiser's output, when its backward comes.

        Args:
            prediction: the denoiser's output in the diffusion loss, of any shape; not changed.
            loss_scale: factor by which the backward pass multiplies the loss (gradient scaler, 1 / accumulation steps); a
                0-dim tensor leaves a scaler's on the device.
        """
        if prediction.requires_grad:
            # A collective inside the backward: it is every process's first there, before any of DistributedDataParallel's.
            prediction.register_hook(lambda gradient: self._note_diffusion(gradient, loss_scale))

    def measure(self, loss: Tensor, prediction: Tensor, loss_scale: Tensor | float = 1.0) -> None:
        """Note the same norm now, before any backward: one pass through the loss alone, not through the network.

        Args:
            loss: the diffusion loss, 0-dim; its graph stays.
            prediction: the denoiser's output in it, of any shape.
            loss_scale: as for `watch`; half precision keeps small gradients by it here, too.

        Raises:
            RuntimeError: the loss does not depend on the prediction.
        """
        (gradient,) = torch.autograd.grad(loss * loss_scale, [prediction], retain_graph=True)
        self._note_diffusion(gradient, loss_scale)

    def _note_diffusion(self, gradient: Tensor, loss_scale: Tensor | float) -> None:
        self.balance.diffusion.update(all_reduce_norm(at_least_float32(gradient).norm() / loss_scale))

    def __call__(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        real: Tensor | None = None,
        backward: Backward = torch.Tensor.backward,
        unroll_denoiser: Denoiser | None = None,
        overflowed: Callable[[], Tensor | bool] | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        loss: Tensor | None = None,
    ) -> TurnReport:
        """Run one turn.

        Args:
            denoiser: the network with its conditioning bound, called with the sampler's timesteps `(B,)`.
            latents: clean latents x_0 of the training images `(B, C, h, w)`, as the denoiser's noising sees them.
            real: the training images `(B, 3, H, W)` in [-1, 1]; None decodes `latents`, so that both images of a pair went
                through the same decoder.
            backward: as `accelerator.backward`, so that loss scaling and accumulation apply to the replayed steps.
            unroll_denoiser: a cheaper way to call the same network without gradient; None uses `denoiser`.
            overflowed: asked after the replay, whether the loop's loss scaler has an infinity in `p.grad` and will skip its
                step, as a bool or as a 0-dim tensor that nobody has waited for; the heads then skip theirs.
            mask: what of each image the diffusion loss trains, `(B, 1, H, W)` in [0, 1] at any size: the real image is pasted
                over the rest of the generated one. None trains all of it.
            weights: of the images in the diffusion loss, `(B,)`: each image's gradient is multiplied by its own, after the
                balance. None weighs all alike.
            loss: the diffusion loss, 0-dim, not yet pulled back: `backward` is then called once, with the sum of both; None
                where the loop's own pass is over.

        Raises:
            TurnOutOfMemoryError: the device's memory ran out.
            ValueError: `--adt_memory joined` without a loss.
        """
        passes = passes_for(self.config.memory, backward, loss)
        clock, clean = StageClock(self.config.profile, latents.device), at_least_float32(latents.detach())
        with clock.naming_the_stage(), preserved_rng(), torch.enable_grad():
            with clock.stage("unroll"):
                # s ~ U{1..m};  x_s = alpha_s x_0 + sigma_s eps;  M subset of {1..s}, |M| <= K
                denoiser, unroll_denoiser = self._guided(denoiser, unroll_denoiser or denoiser)
                start, noised = self._noised(clean)
                positions = self._draw_grad_positions(start)
                # for i = s..1:  o_i = f(sg(x_i), t_i, c);  x_{i-1} = S(x_i, o_i)
                path = self._walk(denoiser, unroll_denoiser, noised, start, positions)
            with self.offload.resident(clean.device):
                seen = self._observed(clock, path, clean, real, mask, with_graph=bool(positions))
                with clock.stage("gradient"):
                    # lambda dL_G/do_i for i in M
                    gradients = self._generator_gradients(seen.loss_g, path, positions, weights)
            with clock.stage("discriminator"):
                # L_D: two views of real up, (gen, real) down, each pair of two augmentations; and the penalty of steep scores
                seen = seen.detached()  # the graph through decoder and backbone goes
                loss_d, score_real, score_gen = self._head_gradients(seen.features)
                sound = self._all_finite(loss_d, gradients)
                windows = [pooled(image, self.discriminator.standardizers) for image in (seen.features.gen, seen.features.real)]
            if sound and gradients.vectors:
                with clock.stage("replay"):
                    # dL/dtheta = dL_diff/dtheta + sum over i in M of lambda (dL_G/do_i) (do_i/dtheta)
                    replay(denoiser, path, gradients.vectors, self.memory.measuring(passes.add, clean))
        with clock.naming_the_stage(), nullcontext() if loss is None else clock.stage("replay"):
            passes.finish()  # a joined pass draws from the loop's random state, as without a turn
        with clock.naming_the_stage(), preserved_rng(), torch.enable_grad(), clock.stage("discriminator"):
            overflows = sound and overflowed is not None and self._overflows(overflowed())
            self._step_heads(seen.features, sound and not overflows)
        values = {"loss_g": seen.loss_g, "loss_d": loss_d, "score_real": score_real.mean(), "score_gen": score_gen.mean()}
        values |= {"distance": feature_distance(*windows)}
        pairs = torch.stack([score_gen, score_real])
        outcome = Outcome(start, scale_of(denoiser), sound, overflows)
        with clock.naming_the_stage():
            return self._report(outcome, values, gradients, clock, seen, torch.stack(windows), pairs)

    def _guided(self, denoiser: Denoiser, unroll_denoiser: Denoiser) -> tuple[Denoiser, Denoiser]:
        """Return both at one guidance scale w ~ U[low, high], the same on every process; as they are without a range."""
        low, high = self.config.guidance_scales
        if low == high:
            return denoiser, unroll_denoiser
        scale = low + (high - low) * float(torch.rand((), generator=self.path_generator))
        return at_scale(denoiser, scale), at_scale(unroll_denoiser, scale)

    def _noised(self, clean: Tensor) -> tuple[int, Tensor]:
        """Draw the start s, the same on every process, and the noise, another on each."""
        start = self._draw_start()
        noise = torch.randn(clean.shape, generator=self.noise_generator, dtype=clean.dtype).to(clean.device, non_blocking=True)
        return start, self.noised_start(self.sampler, clean, noise, self.config.steps, start)

    def _draw_start(self) -> int:
        low, high = self.starts
        return int(torch.randint(low, high + 1, (1,), generator=self.path_generator))

    def _draw_grad_positions(self, start: int) -> list[int]:
        """Draw M among the steps in the trained range of timesteps; empty with weight 0, and while nothing is measured."""
        low, high = self.timestep_range or (-float("inf"), float("inf"))
        timesteps = self.sampler.timesteps
        walked = timesteps[len(timesteps) - start :].tolist()
        weights = self.sampler.output_weights(start) if self.config.grad_mask in WEIGHING else [1.0] * start
        weighed = enumerate(zip(walked, weights, strict=True))
        candidates = [Candidate(position, weight) for position, (timestep, weight) in weighed if low <= timestep < high]
        drawn = choose_grad_positions(self.config.grad_mask, candidates, self.config.grad_steps, self.path_generator)
        return drawn if self.config.weight > 0 and self.schedule.measures(self.turns) else []

    def _walk(self, denoiser: Denoiser, unroll_denoiser: Denoiser, noised: Tensor, start: int, positions: list[int]) -> Unroll:
        keeps = self.memory.keeps_graphs(noised) and not self.schedule.in_warmup(self.turns)
        graph_denoiser = denoiser if keeps else None
        seeds = [draw_seed(self.noise_generator) for _ in range(start)]
        return self.unroll(unroll_denoiser, self.sampler, noised, seeds, positions, bool(positions), graph_denoiser)

    def _draw_crop(self, clean: Tensor, mask: Tensor | None) -> Crop:
        """Draw one crop for both images of all pairs; one that has something to train in it, which waits for the device."""
        pixels = self.config.decode_crop
        side = max(1, pixels // self.latent_pixels) if pixels else 0
        height, width = clean.shape[-2:]
        if mask is None:
            return draw_crop(height, width, side, self.noise_generator)
        return draw_crop_on(mask.cpu(), height, width, side, self.noise_generator)

    def _observed(
        self, clock: StageClock, path: Unroll, clean: Tensor, real: Tensor | None, mask: Tensor | None, with_graph: bool
    ) -> Seen:
        """Decode one crop of both images and let the discriminator look at them.

        Args:
            with_graph: of the generator's loss, to the denoiser's outputs.
        """
        crop = self._draw_crop(clean, mask)
        with clock.stage("decode"):
            # real = Dec(x_0);  gen = Dec(x_0'); the real one first, while no graph of the decoder lies in memory
            real = decode_real(self.decode, clean, crop) if real is None else crop.apply(real, self.latent_pixels)
            gen = decode_generated(self.decode, path.latents, crop, with_graph)
            # gen = M gen + (1 - M) real
            gen = gen if mask is None else paste(gen, real, self._cropped(mask, clean, crop))
        with clock.stage("observe"):
            # L_G = - D(gen, real) - delta mean over others j of (D(gen, real_j) - D(gen, gen_j)), under the same augmentation
            features = self.discriminator.pair_features(gen, real)
            diversity = self.config.diversity
            earlier = self.history.like(features) if diversity and len(gen) == 1 else []
            scores, loss_g = score_generated(self.discriminator, features, self.loss, with_graph, diversity, earlier)
        return Seen(gen, real, features, scores, loss_g)

    def _cropped(self, mask: Tensor, clean: Tensor, crop: Crop) -> Tensor:
        """Return the crop of a mask in the images' pixels, on the images' device."""
        height, width = (length * self.latent_pixels for length in clean.shape[-2:])
        return crop.apply(resized(mask.to(clean), height, width), self.latent_pixels)

    def _generator_gradients(
        self, loss_g: Tensor, path: Unroll, positions: list[int], weights: Tensor | None
    ) -> GeneratorGradients:
        """Return dL_G/do_i of the trained steps, scaled and bounded by their norm over the global batch, and then weighed.

        In the warm-up the norm goes to the balance, and no step is trained.
        """
        if not positions:
            zero = torch.zeros((), device=loss_g.device)
            return GeneratorGradients({}, zero, zero, torch.zeros(0, device=loss_g.device))
        gradients = leaf_gradients(loss_g, path)
        by_step = all_reduce_norm(torch.stack([gradient.norm() for gradient in gradients]))
        raw = torch.stack([by_step[i] for i in positions]).norm()  # a list as index would be copied, and waited for
        if self.schedule.in_warmup(self.turns):
            self.balance.measure(raw)
            return GeneratorGradients({}, raw, torch.zeros_like(raw), by_step)
        factor = self.balance.scale(raw)
        vectors = {i: gradients[i] * factor for i in positions}
        if weights is None:
            return GeneratorGradients(vectors, raw, raw * factor, by_step)
        vectors = {i: vector * weights.to(vector).view(-1, 1, 1, 1) for i, vector in vectors.items()}
        applied = all_reduce_norm(torch.stack([vector.norm() for vector in vectors.values()])).norm()
        return GeneratorGradients(vectors, raw, applied, by_step)

    def _all_finite(self, loss_d: Tensor, gradients: GeneratorGradients) -> bool:
        """Return whether both gradients are finite, over the global batch, so that every process decides alike.

        If not, neither is used: the replay would multiply even a gradient of zero by whatever made the path overflow. Waits
        for the device, once.
        """
        heads = all_finite(self.discriminator.parameters()) & all_reduce_mean(loss_d).isfinite()
        return bool(heads & gradients.raw.isfinite().to(heads.device))

    def _head_gradients(self, features: PairFeatures) -> tuple[Tensor, Tensor, Tensor]:
        return discriminator_gradients(self.discriminator, features, self.loss, self.config.disc_penalty)

    def _overflows(self, overflowed: Tensor | bool) -> bool:
        """Return whether the loop's own step will be skipped in any process. Waits for the device, once."""
        device = next(self.discriminator.parameters()).device
        return any_process(overflowed, device)

    def _step_heads(self, features: PairFeatures, learn: bool) -> None:
        """Step the heads, then further times on turns of the history; if they are not to learn, forget their gradient."""
        if learn:
            self.optimizer.step()
            for _ in range(self.config.disc_steps - 1):
                self._head_gradients(self.history.draw(self.discriminator.generator, features))
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _report(
        self,
        outcome: Outcome,
        values: dict[str, Tensor],
        gradients: GeneratorGradients,
        clock: StageClock,
        seen: Seen,
        windows: Tensor,
        pairs: Tensor,
    ) -> TurnReport:
        """Count the turn, unless it is of the warm-up and taught nothing, and fetch all that leaves the device at once."""
        zero, diffusion = torch.zeros_like(values["loss_d"]), self.balance.diffusion.value
        values |= {"grad_norm": gradients.applied if outcome.sound else zero, "grad_norm_raw": gradients.raw}
        values |= {"grad_norm_diffusion": zero if diffusion is None else diffusion}
        carried = [windows, packed(seen.features)] if outcome.teaches else [windows]
        numbers, step_grad_norms, fetched = fetch(values, gradients.by_step, carried)
        if outcome.sound and self.discriminator.settled:
            self.windows.add(*fetched[0])
        if outcome.teaches:
            self.history.add(fetched[1], seen.features)
        warmup, turn = self.schedule.in_warmup(self.turns), self.turns + 1
        self.turns = self.turns if warmup and outcome.overflows else turn  # the next one is made under the same number
        return TurnReport(
            turn=turn,
            warmup=warmup,
            start=outcome.start,
            cfg_scale=outcome.cfg_scale,
            grad_positions=list(gradients.vectors),
            step_grad_norms=step_grad_norms,
            skipped=not outcome.sound,
            seconds=clock.seconds,
            gen=seen.gen,
            real=seen.real,
            scores=seen.scores,
            pairs=pairs,
            kid=self.windows.kid,
            spread=self.windows.spread,
            **numbers,
        )
