"""One training run with `--adt`: everything that it owns, whole from the moment it exists."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adt_plugin.core.config import NO_WEIGHTS, OWN_DECODER, ADTConfig
from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.diffusion.gradient_path import Backward
from adt_plugin.core.diffusion.samplers import Sampler
from adt_plugin.core.diffusion.unroll import unroll
from adt_plugin.core.discriminator import Discriminator, load_backbone
from adt_plugin.core.distributed import all_processes_agree, world_size
from adt_plugin.core.images.decoding import LatentDecoder, TinyDecoder, load_tiny_decoder, resolve_dtype
from adt_plugin.core.moments import Growth
from adt_plugin.core.out_of_memory import TurnOutOfMemoryError
from adt_plugin.core.report import TurnReport
from adt_plugin.core.rng import preserved_rng
from adt_plugin.core.run import state
from adt_plugin.core.run.health import BadTurnsError, Health
from adt_plugin.core.run.rehearsal import Headroom
from adt_plugin.core.run.story import Story
from adt_plugin.core.schedule import TurnCount, TurnSchedule
from adt_plugin.core.stopwatch import Interval
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host.batch import Predicted
from adt_plugin.host.buckets import Largest
from adt_plugin.host.calls import DenoiserCall
from adt_plugin.host.deepspeed import engine_of, loss_scale_of, skipping
from adt_plugin.host.families import Family
from adt_plugin.host.feedback import Feedback
from adt_plugin.host.progress import Progress
from adt_plugin.host.rate import RestartedRate
from adt_plugin.host.resume import load_heads
from adt_plugin.host.salvage import STOPPED, advice, carried_on, count_unsound
from adt_plugin.host.swap import offloaders_of, walking_forward_only

logger = logging.getLogger(__name__)

Decoder = LatentDecoder | TinyDecoder

Result = TypeVar("Result")

Guide = Callable[[DenoiserCall, Callable[[DenoiserCall], Denoiser]], Denoiser]
"""Binds a captured call as a denoiser, with guidance or without; the function given chooses how a call is made."""


def unguided(call: DenoiserCall, denoiser: Callable[[DenoiserCall], Denoiser]) -> Denoiser:
    """Bind a captured call alone."""
    return denoiser(call)


def without_gradient(guide: Guide, batch: Predicted) -> Denoiser:
    """Bind a batch's call for an unroll, which needs no gradient through the denoiser."""
    return guide(batch.call, lambda call: call.without_checkpointing)


@dataclass(frozen=True)
class Models:
    """The plugin's own networks, loaded before the host loads anything.

    Attributes:
        discriminator: with the weights that the options ask for.
        tiny_decoder: None decodes with the run's own VAE.
    """

    discriminator: Discriminator
    tiny_decoder: TinyDecoder | None

    @classmethod
    def load(cls, config: ADTConfig, family: Family) -> Models:
        """Load them; the host's random state is left alone.

        Raises:
            ConfigError: the backbone, the decoder or the discriminator's weights cannot be loaded.
        """
        with preserved_rng():
            backbone = load_backbone(config.backbone, config.block_indices)
            discriminator = Discriminator.from_config(config, backbone)
        if config.disc_weights != NO_WEIGHTS:
            load_heads(config.disc_weights, config, discriminator)
        if config.decoder == OWN_DECODER:
            return cls(discriminator, None)
        return cls(discriminator, load_tiny_decoder(config.decoder, family.latent_channels, family.tiny_decoder))


@dataclass(frozen=True)
class Run:
    """What turns of a run need.

    Attributes:
        config: the options.
        accelerator: the host's.
        denoiser: prepared by the host.
        turn: with its sampler, decoder and discriminator on the run's device.
        headroom: makes the turns.
        largest: makes the largest batch of the run's data of one that has come.
        host_levers: sd-scripts' own options that would need less memory and are not set.
        guide: binds a batch's call as a denoiser.
        feedback: shows every turn.
        health: looks at every turn.
        story: words what the run says of itself.
        progress: shows one image as the run goes on.
        folder, name: where and under what name the run saves.
        learning_rate: as the user has set it.
        rate: that of the adversarial part, which is in the host's optimizers during a turn.
        growth: prepares the optimizers for turns that follow plain steps.
    """

    config: ADTConfig
    accelerator: Any
    denoiser: nn.Module
    turn: AdversarialTurn
    headroom: Headroom
    largest: Largest
    host_levers: tuple[str, ...]
    guide: Guide
    feedback: Feedback
    health: Health
    story: Story
    progress: Progress
    folder: Path
    name: str
    learning_rate: str
    rate: RestartedRate
    growth: Growth

    @property
    def loss_scale(self) -> Tensor | float:
        """The factor by which the host's backward pass multiplies its loss; a tensor under a loss scaler.

        Asking the scaler to scale a one, not for its number, leaves the answer on the device: nothing waits for it.
        """
        scaler, share = self.accelerator.scaler, 1 / self.accelerator.gradient_accumulation_steps
        engine = engine_of(self.accelerator)
        if engine is not None:
            return share * loss_scale_of(engine)
        return share if scaler is None else scaler.scale(torch.full((), share, device=self.accelerator.device))

    def make_turn(
        self,
        batch: Predicted,
        step: int,
        backward: Backward,
        with_graph: Callable[[DenoiserCall], Denoiser],
        loss: Tensor | None = None,
    ) -> None:
        """Make a turn on a batch and show it.

        Args:
            step: the optimizer step that the batch belongs to, from 0.
            backward: the host's own.
            with_graph: chooses how calls that will be pulled back are made.
            loss: the host's, if it is to be pulled back together with the turn.

        Raises:
            BadTurnsError: too many turns in a row were not finite; what is finite of the run has been saved.
            TurnOutOfMemoryError: it does not fit into memory; what has been trained is saved.
            SeamError: guidance was asked for, and the empty prompt has never been encoded.
        """
        host_seconds, interval = batch.host_seconds, Interval(self.accelerator.device)
        trains = not self.turn.schedule.in_warmup(self.turn.turns)
        grown = trains and self.growth.before(step)
        self.progress.begin(batch, step)
        given = self._given(batch, backward, with_graph) | {"overflowed": self._overflow_test(), "loss": loss}
        report = self._in_memory(step, lambda: self.headroom.make_turn(**given), self.growth.undo if grown else None)
        if trains:
            self.growth.after(step)
        if self.config.profile:
            report.seconds["host"] = host_seconds
        self.feedback.show(report, step)
        self.progress.go_on(batch, step)
        self.say(self.story.tell(report, interval.seconds()))
        self._examine(report)

    def rehearse(
        self,
        batch: Predicted,
        step: int,
        with_graph: Callable[[DenoiserCall], Denoiser],
        backward: Backward | None = None,
    ) -> None:
        """Rehearse a turn where memory is limited and this batch is larger than what has been rehearsed.

        It is one on the largest batch that is to come, if that can be made.

        Args:
            step, with_graph: as for a turn.
            backward: the host's own; None where the host has one pass for its loss and the turn, which is left alone.

        Raises:
            TurnOutOfMemoryError, SeamError: as for a turn.
        """
        if not self.headroom.is_larger(step, batch.noised.latents):
            return
        larger, memory = self.largest.of(batch), self.turn.memory
        if memory.keeps_graphs(larger.noised.latents) != memory.keeps_graphs(batch.noised.latents):
            larger = batch  # it is this batch's graphs that have come to be kept

        def rehearse(each: Predicted) -> None:
            given = self._given(each, backward or torch.Tensor.backward, with_graph)
            self._in_memory(step, lambda: self.headroom.rehearse(step, self._trained(), joined=backward is None, **given))

        self.largest.attempt(rehearse, batch, larger)

    def _given(self, batch: Predicted, backward: Backward, with_graph: Callable[[DenoiserCall], Denoiser]) -> dict[str, Any]:
        """Return what a turn on a batch is given."""
        return {
            "denoiser": self.guide(batch.call, with_graph),
            "latents": batch.noised.latents,
            "backward": backward,
            "unroll_denoiser": without_gradient(self.guide, batch),
            "mask": batch.mask,
            "weights": batch.weights,
        }

    def _in_memory(self, step: int, attempt: Callable[[], Result], undo: Callable[[], None] | None = None) -> Result:
        """Attempt something; where memory runs out, save what has been trained, as it is without the attempt."""
        try:
            return attempt()
        except TurnOutOfMemoryError as error:
            if undo is not None:
                undo()
            raise TurnOutOfMemoryError(
                error.stage, error.reason, error.in_gradient, f"{error} {self._way_out()} {self._kept(step)}"
            ) from error

    def _way_out(self) -> str:
        """Return what sd-scripts itself could do, and where to read on."""
        own = f"If that is not enough: {', '.join(self.host_levers)}. " if self.host_levers else ""
        return f"{own}The figures are in docs/cost.md, 'When memory runs out'."

    def _kept(self, step: int) -> str:
        """Save what has been trained, if the other processes need not be waited for, and say so."""
        if step == 0:
            return "Nothing has been trained yet."
        if world_size() > 1:
            return "With several processes nothing more is saved."
        return self._what_is_left()

    def _trained(self) -> list[nn.Parameter]:
        """Return all that a replay may give a gradient to."""
        parameters = dict.fromkeys([*self._optimized(), *self.denoiser.parameters()])
        return [parameter for parameter in parameters if parameter.requires_grad]

    def _optimized(self) -> Iterator[nn.Parameter]:
        """Yield what the host's optimizers step."""
        groups = (group for optimizer in self.accelerator._optimizers for group in optimizer.param_groups)
        yield from (parameter for group in groups for parameter in group["params"])

    def begin(self, count: TurnCount, forecast: str) -> None:
        """Say what is to come.

        Args:
            count: of the run's turns.
            forecast: of what they cost, as a sentence.
        """
        self.say(self.story.beginning(count, forecast))

    def end(self) -> None:
        """Say what has been, once."""
        if not self.story.ended:
            self.say(self.story.ending())

    def say(self, sentence: str | None) -> None:
        """Log a sentence, once for all processes."""
        if sentence and self.accelerator.is_main_process:
            logger.info(sentence)

    def _overflow_test(self) -> Callable[[], Tensor | bool] | None:
        """Return what tells after the pass whether a loss scaler skips the host's step; None where there is none."""
        engine = engine_of(self.accelerator)
        if engine is not None:
            return skipping(engine)
        return self._overflowed if self.accelerator.scaler is not None else None

    def _overflowed(self) -> Tensor | bool:
        """Return whether the scaler will find an infinity in the gradients of the host's optimizers, and skip their step."""
        gradients = [parameter.grad for parameter in self._optimized() if parameter.grad is not None]
        return bool(gradients) and ~torch.stack([gradient.isfinite().all() for gradient in gradients]).all()

    def _examine(self, report: TurnReport) -> None:
        try:
            self.health.examine(report)
        except BadTurnsError as error:
            raise BadTurnsError(f"{error} {self._what_is_left()}") from error

    def _what_is_left(self) -> str:
        """Save everything that is worth it, or say what is left; every process ends up here together."""
        unsound, tensors = self._count_unsound()
        if all_processes_agree(torch.tensor(not unsound, device=self.accelerator.device)):
            return f"Everything is saved in {self._save_everything()}: --resume goes on from there."
        return advice(unsound, tensors, self.folder, self.name, self.learning_rate)

    def _count_unsound(self) -> tuple[int, int]:
        """Return how many tensors of all that a saved state would hold are not finite, and how many there are."""
        return count_unsound(carried_on(self.accelerator, state.capture(self.turn, self.config).tensors.values()))

    def warn_if_unsound(self) -> None:
        """Warn before the host saves a file that nobody can use."""
        unsound, tensors = self._count_unsound()
        if unsound and self.accelerator.is_main_process:
            logger.warning(
                "What is saved now is of no use: %s", advice(unsound, tensors, self.folder, self.name, self.learning_rate)
            )

    def _save_everything(self) -> Path:
        """Save the host's whole state and the plugin's, as for --save_state; every process ends up here together."""
        folder = self.folder / f"{self.name}-{STOPPED}"
        with self.rate.aside():
            self.accelerator.save_state(str(folder))
        self.accelerator.wait_for_everyone()  # a launcher ends all processes when the first one ends
        return folder


def run_name(args: argparse.Namespace) -> str:
    """Return the name under which the host saves."""
    return getattr(args, "output_name", None) or "last"


def build_turn(
    config: ADTConfig,
    sampler: Sampler,
    decoder: Decoder,
    discriminator: Discriminator,
    device: torch.device,
    timestep_range: tuple[float, float] | None,
    schedule: TurnSchedule,
    network: nn.Module,
) -> AdversarialTurn:
    """Place decoder and discriminator and build the run's turn; the host's random state is left alone.

    Args:
        network: the denoiser itself, whose blocks may be swapped.
    """
    dtype = resolve_dtype(config.decode_dtype, device)
    between_turns = torch.device("cpu") if config.offload else device
    with preserved_rng():
        discriminator.to(device).backbone.to(between_turns, dtype)
        turn = AdversarialTurn(
            config,
            sampler=sampler,
            decode=decoder.to(between_turns, dtype),
            discriminator=discriminator,
            timestep_range=timestep_range,
            latent_pixels=decoder.latent_format.pixels,
            decoder=decoder,
            schedule=schedule,
            unroll=walking_forward_only(unroll, network),
        )
    if offloaders_of(network):
        turn.memory.keep_none()  # the next call moves blocks that a kept graph would need
    return turn
