"""One training run with `--adt`: the seams fill it in, and the first backward of every batch starts the turn.

Order within a batch, as the host calls it: noising (clean latents are noted), denoiser (its call is noted), backward (the
host's own first, then the turn).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adt_plugin import sampling
from adt_plugin.config import ADTConfig, ConfigError
from adt_plugin.discriminator import Discriminator, load_backbone
from adt_plugin.host import entry
from adt_plugin.host.checks import check_warmup, trained_range
from adt_plugin.host.decoding import LatentDecoder, resolve_dtype
from adt_plugin.host.families import ACCELERATOR, METADATA, Family
from adt_plugin.host.feedback import Feedback
from adt_plugin.host.seams import Function, SeamError, Undo, check, patch, patch_attribute
from adt_plugin.monitor import Monitor
from adt_plugin.rng import preserved_rng
from adt_plugin.turn import AdversarialTurn, StageClock


@dataclass
class DenoiserCall:
    """The host's own call of its denoiser, to be repeated with other latents and timesteps.

    The conditioning is detached: with a trained text encoder it carries a graph that the host's backward has freed.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    read_output: Callable[[Any], Tensor]
    autocast: Callable[[], Any]

    @classmethod
    def captured(
        cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], family: Family, autocast: Callable[[], Any]
    ) -> DenoiserCall:
        """From what the forward hook of the prepared denoiser saw."""
        args, kwargs = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        return cls(module, args, kwargs, family.read_output, autocast)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Prediction `(B, C, h, w)` for latents x `(B, C, h, w)` and timesteps t `(B,)`."""
        with self.autocast():
            return self.read_output(self.module(x.to(self.args[0].dtype), t, *self.args[2:], **self.kwargs))

    def without_checkpointing(self, x: Tensor, t: Tensor) -> Tensor:
        """The same for a call without gradient: checkpointing, which only works in train mode, would waste time."""
        modes = [(module, module.training) for module in self.module.modules()] if self.module.training else []
        self.module.eval()
        try:
            return self(x, t)
        finally:
            for module, training in modes:
                module.training = training


class Session:
    """The state of one run.

    Args:
        config: the checked options.
        args: the host's arguments.
        family: of the running trainer.

    Raises:
        ConfigError: the backbone cannot be loaded.
    """

    def __init__(self, config: ADTConfig, args: argparse.Namespace, family: Family) -> None:
        self.config, self.args, self.family = config, args, family
        with preserved_rng():
            backbone = load_backbone(config.backbone, config.block_indices)
            self.discriminator = Discriminator(
                backbone,
                kind=config.disc_type,
                width=config.disc_width,
                augment=config.augmentations,
                noise=config.noise,
                image_size=config.image_size or backbone.image_size,
                seed=config.seed,
            )
        self.undos: list[Undo] = []
        self.accelerator: Any = None
        self.decoder: LatentDecoder | None = None
        self.denoiser: nn.Module | None = None
        self.alphas_cumprod: Tensor | None = None
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
        wraps: dict[Any, Callable[[Function], Function]] = {
            ACCELERATOR: lambda original: self._after(original, self.on_accelerator),
            self.family.models: lambda original: self._after(original, self.on_models),
            self.family.noising: self._around_noising,
            METADATA: self._around_metadata,
        }
        for seam in wraps:
            check(seam)
        self.undos = [patch(seam, wrap) for seam, wrap in wraps.items()]

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
        def noising(args: Any, noise_scheduler: Any, latents: Tensor, *rest: Any, **kwargs: Any) -> Any:
            self.on_noising(noise_scheduler, latents)
            return original(args, noise_scheduler, latents, *rest, **kwargs)

        return noising

    def _around_metadata(self, original: Function) -> Function:
        def get_sai_model_spec(*args: Any, **kwargs: Any) -> dict[str, str]:
            return original(*args, **kwargs) | self.config.metadata()

        return get_sai_model_spec

    def on_accelerator(self, accelerator: Any) -> None:
        """The host made its accelerator."""
        self.accelerator = accelerator
        if accelerator.num_processes > 1:
            entry.stop(
                ConfigError("--adt does not train on several processes yet: launch with --num_processes 1, or remove --adt.")
            )
        if accelerator.distributed_type != DistributedType.NO:
            kind = accelerator.distributed_type.value
            entry.stop(
                ConfigError(f"--adt does not work under {kind}: turn it off in accelerate's configuration, or remove --adt.")
            )
        patch_attribute(accelerator, "prepare", self._around_prepare)
        patch_attribute(accelerator, "backward", self._around_backward)
        self.feedback = Feedback(accelerator, self._monitor() if accelerator.is_main_process else None)

    def _monitor(self) -> Monitor:
        name = getattr(self.args, "output_name", None) or "last"
        return Monitor(Path(self.args.output_dir), name, self.config.pictures_every, self.config.metadata())

    def on_models(self, models: tuple[Any, ...]) -> None:
        """The host loaded its models: copy the decoder while it is in its original precision."""
        if self.accelerator is None:
            entry.stop(SeamError(f"the seam {ACCELERATOR.function} was not reached before the models were loaded"))
        self.decoder = LatentDecoder(models[self.family.vae_index], self.family.latent_scale, self.family.latent_shift)

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
        if self.alphas_cumprod is None:
            self.alphas_cumprod = noise_scheduler.alphas_cumprod.detach().cpu().clone()

    def _before_denoiser(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The first call with gradient after the noising is the one to repeat; validation and sampling have none."""
        if self.in_turn or self.latents is None or self.call is not None or not torch.is_grad_enabled():
            return
        if args[0].shape != self.latents.shape:
            entry.stop(
                SeamError(
                    f"the denoiser was called with {tuple(args[0].shape)}, expected the latents' {tuple(self.latents.shape)}"
                )
            )
        self.call = DenoiserCall.captured(module, args, kwargs, self.family, self.accelerator.autocast)

    def _after_denoiser(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.in_turn or self.call is None or not torch.is_grad_enabled():
            return
        prediction = self.family.read_output(output)
        if prediction.requires_grad and self.decoder is not None:
            self._adversarial_turn().watch(prediction, self._loss_scale())

    def _loss_scale(self) -> float:
        scaler = self.accelerator.scaler
        return (scaler.get_scale() if scaler is not None else 1.0) / self.accelerator.gradient_accumulation_steps

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
            f"{self.family.models.function} ({self.family.models.purpose})": self.decoder,
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
        """Again, now that the host has counted its steps: it derives them from --max_train_epochs and the data."""
        try:
            check_warmup(self.args, self.config)
        except ConfigError as error:
            entry.stop(error)

    def _run_turn(self, call: DenoiserCall, latents: Tensor, backward: Callable[[Tensor], None]) -> None:
        host_seconds = self.clock.now() - self.batch_began if self.clock else 0.0
        self.in_turn = True
        try:
            report = self._adversarial_turn()(call, latents, backward=backward, unroll_denoiser=call.without_checkpointing)
        finally:
            self.in_turn = False
        if self.config.profile:
            report.seconds["host"] = host_seconds
        if self.feedback is not None:
            self.feedback.show(report, self.optimizer_steps)

    def _adversarial_turn(self) -> AdversarialTurn:
        """Built at the first batch, when schedule, decoder and device are known; the host's random state is left alone."""
        if self.turn is not None:
            return self.turn
        assert self.decoder is not None and self.alphas_cumprod is not None
        device = self.accelerator.device
        dtype = resolve_dtype(self.config.decode_dtype, device)
        prediction_type = self.family.prediction_type(self.args)
        with preserved_rng():
            self.discriminator.to(device).backbone.to(dtype)
            self.turn = AdversarialTurn(
                self.config,
                scheduler=sampling.build_scheduler(
                    self.config.sampler, self.alphas_cumprod, prediction_type, self.config.spacing
                ),
                decode=self.decoder.to(device, dtype),
                discriminator=self.discriminator,
                timestep_range=trained_range(self.args),  # read once: the host's validation changes its arguments
            )
        return self.turn
