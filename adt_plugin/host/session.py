"""The host's seams, connected to one run: what each of them brings, and what it starts.

Order within a batch, as the host calls it: noising (clean latents are noted), denoiser (its call is noted), backward (the
host's own first, then the turn). Whatever goes wrong is raised, and ends the run at the seam where the host called.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adt_plugin.core.config import AUTO, ADTConfig
from adt_plugin.core.diffusion.gradient_path import Backward
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.distributed import world_size
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.images.decoding import LatentDecoder
from adt_plugin.core.moments import Growth
from adt_plugin.core.run import state
from adt_plugin.core.run.health import Health, patience_for
from adt_plugin.core.run.monitor import Monitor
from adt_plugin.core.run.rehearsal import Headroom
from adt_plugin.core.run.story import Story
from adt_plugin.core.schedule import AdversarialRate, TurnSchedule
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host import forecast, resume, trained
from adt_plugin.host.batch import Batch, Idle, Noised, Predicted
from adt_plugin.host.buckets import Largest, is_compiled
from adt_plugin.host.calls import DenoiserCall
from adt_plugin.host.checks import check_processes, memory_levers, trained_range, weighs_images
from adt_plugin.host.conventions import only_tensor, same, without_frames
from adt_plugin.host.deepspeed import engine_of, prepared_as, stepped_by
from adt_plugin.host.families import ACCELERATOR, MASKING, METADATA, METADATA_OBJECT, Family
from adt_plugin.host.feedback import Feedback
from adt_plugin.host.findings import Findings
from adt_plugin.host.guidance import Guidance, advice, settled
from adt_plugin.host.order import HostFirst, Order, Together, order_for, without_reentrance
from adt_plugin.host.progress import Progress
from adt_plugin.host.rate import RestartedRate
from adt_plugin.host.run import Decoder, Guide, Models, Run, build_turn, run_name, unguided, without_gradient
from adt_plugin.host.seams import (
    Function,
    SeamError,
    Undo,
    check,
    ending_the_run,
    first_found,
    patch,
    patch_attribute,
    resolve,
)
from adt_plugin.options import metadata


class Session:
    """Listens to the host on behalf of one run.

    Args:
        config: the checked options.
        args: the host's arguments.
        family: of the running trainer.

    Raises:
        ConfigError: the backbone, the decoder or the discriminator's weights cannot be loaded, or guidance is asked of a
            host that is too old for it.
    """

    def __init__(self, config: ADTConfig, args: argparse.Namespace, family: Family) -> None:
        self.args, self.family, self.model = args, family, family.counted(args)
        self.config = settled(config, self.model)
        self.models = Models.load(config, family)
        self.guidance = Guidance.from_config(self.config, asked=config.cfg_scale != AUTO)
        self.trained_range = trained_range(args, family)  # read once: the host's validation changes its arguments
        self.weighs, self.noising_seam, self.vae_seam = weighs_images(args), family.noising[0], family.vae[0]
        self.found, self.undos = Findings(), contextlib.ExitStack()
        self.batch: Batch = Idle()
        self.order: Order = HostFirst()
        self.whole_states: list[Path] = []
        self.unmoved: list[Tensor] = []
        self.caption = ""
        self.optimizer_steps = self.host_steps = 0
        self.backward_seen = False

    # Installation

    def install(self) -> None:
        """Patch every seam that the run needs; all are checked before the first is patched.

        Raises:
            SeamError: the host lacks one.
        """
        self.noising_seam, self.vae_seam = first_found(self.family.noising), first_found(self.family.vae)
        wraps: dict[Any, Callable[[Function], Function]] = {
            ACCELERATOR: lambda original: self._after(original, self.on_accelerator),
            self.vae_seam: lambda original: self._after(original, self.on_vae_loader),
            self.noising_seam: self._around_noising,
            MASKING: self._around_masking,
            METADATA: self._around_metadata,
        }
        with contextlib.suppress(SeamError):  # older hosts have the function alone
            resolve(METADATA_OBJECT)
            wraps[METADATA_OBJECT] = self._around_metadata
        for seam in wraps:
            check(seam)
        for seam, wrap in wraps.items():
            self._remember(patch(seam, wrap))
        if self.guidance is not None:
            self.guidance.install(self.undos)

    def uninstall(self) -> None:
        """Give the host everything back, for a second run in the same process."""
        self.undos.close()

    def _remember(self, undo: Undo) -> None:
        self.undos.callback(undo)

    @staticmethod
    def _after(original: Function, listener: Callable[[Any], None]) -> Function:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            listener(result)
            return result

        return wrapper

    def _around_noising(self, original: Function) -> Function:
        signature = inspect.signature(original)

        def noising(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            self.on_noising(given.get("noise_scheduler"), without_frames(given["latents"]))
            return original(*args, **kwargs)

        return noising

    def _around_masking(self, original: Function) -> Function:
        def masking(loss: Tensor, batch: trained.Data) -> Tensor:
            if isinstance(self.batch, Predicted):
                self.batch = replace(self.batch, mask=trained.mask_of(batch))
            masked: Tensor = original(loss, batch)
            return masked

        return masking

    def _around_metadata(self, original: Function) -> Function:
        def with_options(*args: Any, **kwargs: Any) -> dict[str, str]:
            saved: dict[str, str] = original(*args, **kwargs)
            return saved if getattr(self.args, "no_metadata", False) else saved | metadata(self.config)

        return with_options

    # What the host makes, once

    def on_accelerator(self, accelerator: Any) -> None:
        """Listen to the accelerator that the host has made.

        Raises:
            ConfigError: it spreads the run in a way that turns cannot follow.
        """
        check_processes(accelerator, bool(getattr(self.args, "deepspeed", False)))
        self.found.bring("accelerator", accelerator)
        self.order = order_for(self.config, accelerator)
        if isinstance(self.order, Together):
            self._remember(without_reentrance())
        self._remember(patch_attribute(accelerator, "prepare", self._around_prepare))
        self._remember(patch_attribute(accelerator, "backward", self._around_backward))
        self._remember(resume.on_load(accelerator, self.on_resume))
        self._remember(resume.on_full_disk(accelerator, self.whole_states))
        self._remember(patch_attribute(accelerator, "end_training", self._around_end))
        atexit.register(self.on_end)
        self._remember(lambda: atexit.unregister(self.on_end))
        self.found.bring(
            "feedback", Feedback(accelerator, self._monitor() if accelerator.is_main_process else None, self.undos)
        )

    def _monitor(self) -> Monitor:
        """Open the run's rows."""
        resumes = bool(getattr(self.args, "resume", None))
        every, folder = self.config.pictures_every, Path(self.args.output_dir)
        return Monitor(folder, run_name(self.args), every, metadata(self.config), resumes)

    def on_vae_loader(self, loaded: Any) -> None:
        """Copy the decoder of the VAE that the host has loaded, while it is in its original precision.

        Raises:
            SeamError: the host has made no accelerator yet.
        """
        if "accelerator" not in self.found:
            raise SeamError(f"the seam {ACCELERATOR.function} was not reached before the models were loaded")
        family, vae = self.family, self.family.vae_in(loaded)
        tiny = self.models.tiny_decoder
        decoder = tiny or LatentDecoder.copied_from(vae, family.latent_format(vae), family.decoder_blocks)
        self.found.bring("decoder", decoder)

    def _around_prepare(self, original: Function) -> Function:
        def prepare(*objects: Any, **kwargs: Any) -> Any:
            prepared = original(*objects, **kwargs)
            results = prepared if isinstance(prepared, tuple) else (prepared,)
            for before, after in zip(objects, results, strict=False):
                denoiser = prepared_as(before, after, self.family.denoisers)
                if denoiser is not None:
                    self.on_denoiser(denoiser)
                if isinstance(after, DataLoader):
                    self.on_data(after)
                self.unmoved.extend(trained.of_text(before))
            return prepared

        return prepare

    def on_data(self, loader: DataLoader[Any]) -> None:
        """Note how many batches an epoch has, and listen to them where images have weights, or pictures have captions."""
        if "batches" not in self.found:  # the validation's come later
            self.found.bring("batches", len(loader))
            self.found.bring("dataset", loader.dataset)
        if self.weighs or self.config.pictures_every:
            self._remember(trained.on_data(loader, self.on_batch))

    def on_batch(self, data: trained.Data) -> None:
        """Note what is needed of a batch that the host is about to have; images would stay in memory."""
        if self.weighs:
            self.found.bring("data", data)
        self.caption = trained.caption_of(data)

    def on_denoiser(self, denoiser: nn.Module) -> None:
        """Listen to the calls of the denoiser that the host has prepared."""
        self.found.bring("denoiser", denoiser)
        before = denoiser.register_forward_pre_hook(ending_the_run(self._before_denoiser), with_kwargs=True)
        after = denoiser.register_forward_hook(ending_the_run(self._after_denoiser))
        self._remember(before.remove)
        self._remember(after.remove)

    def on_resume(self, folder: Path) -> None:
        """Read the state that the host resumes from, now, so that one that does not fit ends the run before it trains.

        Raises:
            StateError: it does not fit.
        """
        self.whole_states.append(folder)
        found = resume.read_state(folder, self.config, self.models.discriminator)
        self.found.bring("state", found)
        self.host_steps = resume.host_count(folder)
        self.optimizer_steps = self.host_steps if found is None else found.manifest.step

    @cached_property
    def last_step(self) -> int:
        """The optimizer step after which the run ends, those behind a resumed state included; known from the first batch on."""
        batches, processes = partial(self.found.__getitem__, "batches"), self.found["accelerator"].num_processes
        return self.optimizer_steps + resume.steps_left(self.args, self.host_steps, batches, processes)

    @cached_property
    def rate(self) -> RestartedRate:
        """The adversarial part's learning rate, in the optimizers that the host has prepared."""
        accelerator = self.found["accelerator"]
        optimizers = [stepped_by(engine_of(accelerator), prepared.optimizer) for prepared in accelerator._optimizers]
        return RestartedRate(AdversarialRate.from_config(self.config, self.last_step), optimizers, self.undos)

    @cached_property
    def run(self) -> Run:
        """The run, made at its first batch, when all of its parts are there.

        Raises:
            SeamError: one is not.
        """
        guide = self._guide()  # first, since it may settle an option anew
        accelerator, discriminator = self.found["accelerator"], self.models.discriminator
        decoder, sampler = cast(Decoder, self.found["decoder"]), cast(Sampler, self.found["sampler"])
        schedule = TurnSchedule.from_config(self.config, self.last_step, self.args.gradient_accumulation_steps)
        unwrapped = accelerator.unwrap_model(self.found["denoiser"])
        network = getattr(unwrapped, "_orig_mod", unwrapped)  # newer accelerates leave torch.compile's wrapper on
        turn = build_turn(
            self.config, sampler, decoder, discriminator, accelerator.device, self.trained_range, schedule, network
        )
        if "state" in self.found and self.found["state"] is not None:
            state.restore(turn, self.found["state"])
        capture = lambda: state.capture(turn, self.config, self.optimizer_steps)  # noqa: E731
        self._remember(resume.on_save(accelerator, capture))
        feedback = self.found["feedback"]
        return Run(
            config=self.config,
            accelerator=accelerator,
            denoiser=self.found["denoiser"],
            turn=turn,
            headroom=Headroom(turn),
            largest=Largest(self.found.get("dataset"), turn.latent_pixels, possible=not is_compiled(unwrapped)),
            host_levers=tuple(memory_levers(self.args)),
            guide=guide,
            feedback=feedback,
            health=Health(
                self.config.max_bad_turns, turn.loss, patience_for(turn.schedule.count(*self._to_come(turn)).adversarial)
            ),
            story=Story(self.config.backbone, feedback.places),
            progress=Progress(self.config, turn, partial(without_gradient, guide), self._fit, feedback),
            folder=Path(self.args.output_dir),
            name=run_name(self.args),
            learning_rate=str(getattr(self.args, "unet_lr", None) or getattr(self.args, "learning_rate", "unknown")),
            rate=self.rate,
            growth=self._growth(turn),
        )

    def _to_come(self, turn: AdversarialTurn) -> tuple[int, int, int, int]:
        """Return what the schedule is told of the rest of the run, to count its turns or to check them."""
        step = self.optimizer_steps
        return self.last_step - step, self.args.gradient_accumulation_steps, step, turn.turns

    def _growth(self, turn: AdversarialTurn) -> Growth:
        """Return what prepares the optimizers for turns; the turns behind a resumed state are known to them."""
        patience = 2 * self.config.warmup // self.args.gradient_accumulation_steps
        unmoved = [] if self.config.train_text_encoder else self.unmoved
        clip = float(getattr(self.args, "max_grad_norm", 0.0) or 0.0)
        grown = Growth(self.config, self.rate.optimizers, patience, unmoved, clip)
        if turn.turns > self.config.warmup:
            grown.follow(self.optimizer_steps)
        return grown

    def _guide(self) -> Guide:
        """Return how calls are bound: without guidance where nobody asked for it and the host embeds prompts its own way."""
        if self.guidance is not None and not self.guidance.possible:
            self.guidance, self.config = None, replace(self.config, cfg_scale="1")
        return self.guidance.guided if self.guidance else unguided

    def _around_end(self, original: Function) -> Function:
        def end_training(*args: Any, **kwargs: Any) -> Any:
            self.on_end()
            if "run" in vars(self):
                self.run.warn_if_unsound()
            return original(*args, **kwargs)

        return end_training

    def on_end(self) -> None:
        """Let the run say what has been, when the host has trained, or when the process ends before it has."""
        if "run" in vars(self):
            self.run.end()

    # One batch

    def on_noising(self, noise_scheduler: Any, latents: Tensor) -> None:
        """Begin a batch, of training or of validation.

        Raises:
            SeamError: the first batch was never brought to the accelerator's backward pass.
        """
        if isinstance(self.batch, Predicted) and not self.backward_seen:
            raise SeamError("the seam Accelerator.backward was not reached by the first batch; nothing has been saved")
        self.batch = Noised.begin(latents, self.config.profile)
        if "sampler" not in self.found:
            self.found.bring("sampler", self.family.schedule.build(self.config, self.args, noise_scheduler))
        self._fit(latents)

    def _fit(self, latents: Tensor) -> None:
        """Fit the sampler to latents of this size."""
        self.family.schedule.fit(self.found["sampler"], self.config, (latents.shape[-2], latents.shape[-1]))

    def _before_denoiser(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the first call with gradient after the noising, which turns repeat; validation and sampling have none."""
        if isinstance(self.batch, Noised) and torch.is_grad_enabled():
            autocast = self.found["accelerator"].autocast
            taken = same if self.config.train_text_encoder else Tensor.detach
            call = DenoiserCall.captured(module, args, kwargs, self.family.convention, autocast, taken)
            weights = trained.weights_of(self.found["data"]) if self.weighs else None
            self.batch = replace(self.batch.predicted(call), weights=weights, caption=self.caption)

    def _after_denoiser(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Let the balance learn of the gradient at the denoiser's output."""
        if not isinstance(self.batch, Predicted) or not torch.is_grad_enabled():
            return
        prediction = only_tensor(output)
        if prediction.requires_grad and "decoder" in self.found:
            self.batch = self.order.predicted(self.run, self.batch, prediction)

    def _around_backward(self, original: Function) -> Function:
        def backward(loss: Tensor, **kwargs: Any) -> None:
            pull_back = partial(original, **kwargs)
            if not isinstance(self.batch, Predicted):
                self.on_backward(loss, pull_back)
                return
            with self.rate.during(self.optimizer_steps):
                self.on_backward(loss, pull_back)

        return backward

    def on_backward(self, loss: Tensor, backward: Backward) -> None:
        """Pull the host's loss back, and add the turn's gradient to its own.

        Raises:
            SeamError: at the first backward pass, a seam was never reached.
            ConfigError: at the first backward pass, the run is too short for its warm-up, or trains no text encoder though
                turns were to train it.
        """
        batch, self.batch = self.batch, Idle()
        if not self.backward_seen:
            self._check_every_seam_was_hit(batch)
            self._check_text_encoder(batch)
            self._begin(batch)
            self.backward_seen = True
        if isinstance(batch, Predicted):
            self.order.backward(self.run, batch, self.optimizer_steps, loss, backward)
        else:
            backward(loss)
        self.optimizer_steps += int(self.found["accelerator"].sync_gradients)

    def _check_every_seam_was_hit(self, batch: Batch) -> None:
        hit = {
            f"{self.vae_seam.function} ({self.vae_seam.purpose})": "decoder" in self.found,
            f"Accelerator.prepare (the denoiser, one of {', '.join(self.family.denoisers)})": "denoiser" in self.found,
            f"{self.noising_seam.function} ({self.noising_seam.purpose})": not isinstance(batch, Idle),
            "the denoiser's forward call": isinstance(batch, Predicted),
        }
        missed = [name for name, reached in hit.items() if not reached]
        if missed:
            raise SeamError(
                f"these seams of sd-scripts were never reached before the first backward pass: {'; '.join(missed)}. "
                "Training would go on without ADT, so it ends here; nothing has been saved."
            )

    def _check_text_encoder(self, batch: Batch) -> None:
        if self.config.train_text_encoder and isinstance(batch, Predicted) and not batch.call.has_graph:
            raise ConfigError(
                "--adt_train_text_encoder needs a run that trains its text encoder, and this one does not: leave it out, or "
                "let sd-scripts train the encoder, too."
            )

    def _begin(self, batch: Batch) -> None:
        """Check the turns again and say what is to come, with batches as the first.

        By now the host has counted its steps, from --max_train_epochs and the data, and read its state.
        """
        turn = self.run.turn
        to_come = self._to_come(turn)
        if self.config.weight > 0:
            turn.schedule.check(*to_come)
        count, images = turn.schedule.count(*to_come), len(batch.noised.latents) if isinstance(batch, Predicted) else 0
        told = (
            forecast.sentence(self.family, self.config, self.args),
            forecast.of_images(count, images * world_size()) if self.config.weight > 0 else "",
            advice(self.family.name, self.model, self.config),
        )
        self.run.begin(count, " ".join(filter(None, told)))
