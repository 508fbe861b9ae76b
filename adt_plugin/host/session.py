"""One training run with `--adt`: the seams fill it in, and the first backward of every batch starts the turn.

Order within a batch, as the host calls it: noising (clean latents are noted), denoiser (its call is noted), backward (the
host's own first, then the turn).
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.config import OWN_DECODER, ADTConfig, ConfigError
from adt_plugin.core.diffusion.sampling import Denoiser
from adt_plugin.core.discriminator import Discriminator, load_backbone
from adt_plugin.core.images.decoding import LatentDecoder, TinyDecoder, load_tiny_decoder, resolve_dtype
from adt_plugin.core.rng import preserved_rng
from adt_plugin.core.run.health import BadTurnsError, Health
from adt_plugin.core.run.monitor import Monitor
from adt_plugin.core.turn import AdversarialTurn, StageClock
from adt_plugin.host import entry
from adt_plugin.host.calls import DenoiserCall
from adt_plugin.host.checks import check_processes, check_warmup, trained_range
from adt_plugin.host.conventions import only_tensor
from adt_plugin.host.families import ACCELERATOR, METADATA, METADATA_OBJECT, Family
from adt_plugin.host.feedback import Feedback
from adt_plugin.host.guidance import Guidance
from adt_plugin.host.seams import Function, SeamError, Undo, check, first_found, patch, patch_attribute, resolve
from adt_plugin.host.states import StateKeeper, load_heads


class Session:
    """The state of one run.

    Args:
        config: the checked options.
        args: the host's arguments.
        family: of the running trainer.

    Raises:
        ConfigError: the backbone, the decoder or the discriminator's weights cannot be loaded, or guidance is asked of a
            host that is too old for it.
    """

    def __init__(self, config: ADTConfig, args: argparse.Namespace, family: Family) -> None:
        self.config, self.args, self.family = config, args, family
        with preserved_rng():
            backbone = load_backbone(config.backbone, config.block_indices)
            self.discriminator = Discriminator.configured(config, backbone)
        if config.disc_weights != "none":
            load_heads(config.disc_weights, config, self.discriminator)
        self.states = StateKeeper(config, self.discriminator, lambda: (self.turn, self.optimizer_steps))
        self.guidance = Guidance(config.cfg_scale) if config.cfg_scale > 1 else None
        own = config.decoder == OWN_DECODER
        self.tiny = None if own else load_tiny_decoder(config.decoder, family.latent_channels)
        self.health = Health(config.max_bad_turns)
        self.undos: list[Undo] = []
        self.vae_seam = family.vae[0]
        self.trained_range = trained_range(args, family)  # read once: the host's validation changes its arguments
        self.accelerator: Any = None
        self.decoder: LatentDecoder | TinyDecoder | None = None
        self.denoiser: nn.Module | None = None
        self.scheduler: Any = None
        self.latents: Tensor | None = None
        self.call: DenoiserCall | None = None
        self.turn: AdversarialTurn | None = None
        self.feedback: Feedback | None = None
        self.in_turn = self.first_backward_done = False
        self.optimizer_steps = 0
        self.clock: StageClock | None = None
        self.batch_began = 0.0

    # Installation

    def install(self) -> None:
        """Patch every seam that the run needs; all are checked before the first is patched.

        Raises:
            SeamError: the host lacks one.
        """
        self.vae_seam = first_found(self.family.vae)
        wraps: dict[Any, Callable[[Function], Function]] = {
            ACCELERATOR: lambda original: self._after(original, self.on_accelerator),
            self.vae_seam: lambda original: self._after(original, self.on_vae_loader),
            self.family.noising: self._around_noising,
            METADATA: self._around_metadata,
        }
        with contextlib.suppress(SeamError):  # older hosts have the function alone
            resolve(METADATA_OBJECT)
            wraps[METADATA_OBJECT] = self._around_metadata
        for seam in wraps:
            check(seam)
        self.undos = [patch(seam, wrap) for seam, wrap in wraps.items()] + (self.guidance.install() if self.guidance else [])

    def uninstall(self) -> None:
        """Give the host its functions back, for a second run in the same process."""
        for undo in self.undos + (self.feedback.undos if self.feedback else []):
            undo()

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
            self.on_noising(given.get("noise_scheduler"), given["latents"])
            return original(*args, **kwargs)

        return noising

    def _around_metadata(self, original: Function) -> Function:
        def with_options(*args: Any, **kwargs: Any) -> dict[str, str]:
            return original(*args, **kwargs) | self.config.metadata()

        return with_options

    def on_accelerator(self, accelerator: Any) -> None:
        """The host made its accelerator."""
        self.accelerator = accelerator
        try:
            check_processes(self.config, accelerator)
        except ConfigError as error:
            entry.stop(error)
        patch_attribute(accelerator, "prepare", self._around_prepare)
        patch_attribute(accelerator, "backward", self._around_backward)
        self.states.register(accelerator)
        self.feedback = Feedback(accelerator, self._monitor() if accelerator.is_main_process else None)

    def _monitor(self) -> Monitor:
        return Monitor(Path(self.args.output_dir), self._name(), self.config.pictures_every, self.config.metadata())

    def _name(self) -> str:
        return getattr(self.args, "output_name", None) or "last"

    def on_vae_loader(self, loaded: Any) -> None:
        """The host loaded its VAE: copy the decoder while it is in its original precision."""
        if self.accelerator is None:
            entry.stop(SeamError(f"the seam {ACCELERATOR.function} was not reached before the models were loaded"))
        vae = self.family.vae_in(loaded)
        self.decoder = self.tiny or LatentDecoder.copied_from(vae, self.family.latent_format(vae))

    def _around_prepare(self, original: Function) -> Function:
        def prepare(*objects: Any, **kwargs: Any) -> Any:
            prepared = original(*objects, **kwargs)
            results = prepared if isinstance(prepared, tuple) else (prepared,)
            for before, after in zip(objects, results, strict=False):
                if type(before).__name__ in self.family.denoisers:
                    self.on_denoiser(after)
            return prepared

        return prepare

    def on_denoiser(self, denoiser: nn.Module) -> None:
        """The host prepared its denoiser: listen to its calls."""
        self.denoiser = denoiser
        denoiser.register_forward_pre_hook(self._before_denoiser, with_kwargs=True)
        denoiser.register_forward_hook(self._after_denoiser)

    # One batch

    def on_noising(self, noise_scheduler: Any, latents: Tensor) -> None:
        """A batch, of training or of validation, is about to be noised."""
        if self.call is not None and not self.first_backward_done:
            entry.stop(SeamError("the seam Accelerator.backward was not reached by the first batch; nothing has been saved"))
        self.latents, self.call = latents.detach(), None
        self.clock = StageClock(self.config.profile, latents.device)
        self.batch_began = self.clock.now()
        if self.scheduler is None:
            self.scheduler = self.family.schedule.build(self.config, self.args, noise_scheduler)
        self.family.schedule.fit(self.scheduler, self.config, (latents.shape[-2], latents.shape[-1]))

    def _before_denoiser(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The first call with gradient after the noising is the one to repeat; validation and sampling have none."""
        if self.in_turn or self.latents is None or self.call is not None or not torch.is_grad_enabled():
            return
        call = DenoiserCall.captured(module, args, kwargs, self.family.convention, self.accelerator.autocast)
        expected = self.family.convention.pack(self.latents).shape
        found = getattr(call.latents, "shape", ())
        if found != expected:
            entry.stop(SeamError(f"the denoiser was called with {tuple(found)}, expected the latents' {tuple(expected)}"))
        self.call = call

    def _after_denoiser(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.in_turn or self.call is None or not torch.is_grad_enabled():
            return
        prediction = only_tensor(output)
        if prediction.requires_grad and self.decoder is not None:
            self._adversarial_turn().watch(prediction, self._loss_scale())

    def _loss_scale(self) -> float:
        scaler = self.accelerator.scaler
        return (scaler.get_scale() if scaler is not None else 1.0) / self.accelerator.gradient_accumulation_steps

    def _overflowed(self) -> bool:
        """Whether the scaler will find an infinity in the gradients of the host's optimizers, and skip their step."""
        groups = (group for optimizer in self.accelerator._optimizers for group in optimizer.param_groups)
        gradients = [parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None]
        return bool(gradients) and not bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())

    def _around_backward(self, original: Function) -> Function:
        def backward(loss: Tensor, **kwargs: Any) -> None:
            original(loss, **kwargs)
            self.after_backward(original)

        return backward

    def after_backward(self, backward: Callable[[Tensor], None]) -> None:
        """The host's own gradient is there: add the turn's."""
        if not self.first_backward_done:
            self._check_every_seam_was_hit()
            self._check_warmup()
            self.first_backward_done = True
        call, latents = self.call, self.latents
        self.call = self.latents = None
        if call is not None and latents is not None and self._adversarial_turn().due(self.optimizer_steps):
            self._run_turn(call, latents, backward)
        self.optimizer_steps += int(self.accelerator.sync_gradients)

    def _check_every_seam_was_hit(self) -> None:
        hit = {
            f"{self.vae_seam.function} ({self.vae_seam.purpose})": self.decoder,
            f"Accelerator.prepare (the denoiser, one of {', '.join(self.family.denoisers)})": self.denoiser,
            f"{self.family.noising.function} ({self.family.noising.purpose})": self.latents,
            "the denoiser's forward call": self.call,
        }
        missed = [name for name, value in hit.items() if value is None]
        if missed:
            entry.stop(
                SeamError(
                    f"these seams of sd-scripts were never reached before the first backward pass: {'; '.join(missed)}. "
                    "Training would go on without ADT, so it ends here; nothing has been saved."
                )
            )

    def _check_warmup(self) -> None:
        """Again, now that the host has counted its steps, from --max_train_epochs and the data, and has read its state."""
        turn = self._adversarial_turn()
        try:
            check_warmup(self.args, self.config, turn.turns, self.optimizer_steps)
        except ConfigError as error:
            entry.stop(error)

    def _run_turn(self, call: DenoiserCall, latents: Tensor, backward: Callable[[Tensor], None]) -> None:
        host_seconds = self.clock.now() - self.batch_began if self.clock else 0.0
        self.in_turn = True
        try:
            report = self._adversarial_turn()(
                self._guided(call, lambda call: call),
                latents,
                backward=backward,
                unroll_denoiser=self._guided(call, lambda call: call.without_checkpointing),
                overflowed=self._overflowed if self.accelerator.scaler is not None else None,
            )
        finally:
            self.in_turn = False
        if self.config.profile:
            report.seconds["host"] = host_seconds
        if self.feedback is not None:
            self.feedback.show(report, self.optimizer_steps)
        try:
            self.health.examine(report)
        except BadTurnsError as error:
            entry.stop(BadTurnsError(f"{error} Everything is saved in {self._save_everything()}: --resume goes on from there."))

    def _save_everything(self) -> Path:
        """The host's whole state and the plugin's, as for --save_state; every process ends up here together."""
        folder = Path(self.args.output_dir) / f"{self._name()}-adt-stopped-state"
        self.accelerator.save_state(str(folder))
        self.accelerator.wait_for_everyone()  # a launcher ends all processes when the first one ends
        return folder

    def _guided(self, call: DenoiserCall, denoiser: Callable[[DenoiserCall], Denoiser]) -> Denoiser:
        if self.guidance is None:
            return denoiser(call)
        try:
            return self.guidance.guided(call, denoiser)
        except SeamError as error:
            entry.stop(error)

    def _adversarial_turn(self) -> AdversarialTurn:
        """Built at the first batch, when schedule, decoder and device are known; the host's random state is left alone."""
        if self.turn is not None:
            return self.turn
        assert self.decoder is not None and self.scheduler is not None
        device = self.accelerator.device
        dtype = resolve_dtype(self.config.decode_dtype, device)
        between_turns = torch.device("cpu") if self.config.offload else device
        with preserved_rng():
            self.discriminator.to(device).backbone.to(between_turns, dtype)
            self.turn = AdversarialTurn(
                self.config,
                scheduler=self.scheduler,
                decode=self.decoder.to(between_turns, dtype),
                discriminator=self.discriminator,
                timestep_range=self.trained_range,
                latent_pixels=self.decoder.latent_format.pixels,
                decoder=self.decoder,
            )
            self.optimizer_steps += self.states.apply(self.turn)
        return self.turn
