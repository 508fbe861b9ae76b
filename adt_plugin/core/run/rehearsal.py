"""Turns tried before they count, so that memory runs out before a run has trained, and not when its warm-up is over.

Turns come late in a run (`--adt_begin`), and those of the warm-up keep no graph. What an adversarial one needs is known only
when it has been made.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.distributed import any_process, rank, world_size
from adt_plugin.core.out_of_memory import TurnOutOfMemoryError, free_what_is_cached
from adt_plugin.core.report import TurnReport
from adt_plugin.core.rng import preserved_rng
from adt_plugin.core.run.levers import settings_left, step_down
from adt_plugin.core.turn import AdversarialTurn

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PULLED = 256 * 2**20
"""The most bytes of gradients that a rehearsed joined pass computes (ours): those of a usual LoRA, or of the small tensors of a
whole model, which lie in all of its depths, so that the pass walks the whole graph and holds no second model."""


def is_limited(device: torch.device) -> bool:
    """Return whether a device's memory runs out with an error: a computer's own swaps, or kills the process."""
    return device.type in ("cuda", "xpu")


def stand_in(turn: AdversarialTurn) -> AdversarialTurn:
    """Return a turn with a copy of its own of all that turns change, past its warm-up, which always walks the longest path.

    Decoder and backbone, which are frozen, are the turn's own.
    """
    generators = [part for part in (*vars(turn).values(), turn.discriminator.generator) if isinstance(part, torch.Generator)]
    shared = (turn.decode, turn.offload, turn.discriminator.backbone)
    memo: dict[int, Any] = {id(part): part for part in shared} | {id(part): _cloned(part) for part in generators}
    double = copy.deepcopy(turn, memo)
    double.turns = max(turn.turns, turn.schedule.warmup)
    double.starts = (turn.starts[1], turn.starts[1])
    return double


def _cloned(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device).set_state(generator.get_state())


@contextmanager
def unchanged_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put every `p.grad` back as it was, bit for bit, also after an error.

    They stay where they are, so that a backward pass inside adds to them as it would to the true ones; the copies are in the
    computer's memory.
    """
    saved = [(p, p.grad, None if p.grad is None else p.grad.detach().to("cpu", copy=True)) for p in parameters]
    try:
        yield
    except TurnOutOfMemoryError as error:
        error.in_gradient = False
        raise
    finally:
        for parameter, gradient, copied in saved:
            parameter.grad = gradient
            if gradient is not None and copied is not None:
                gradient.copy_(copied)


def rehearse(
    turn: AdversarialTurn,
    parameters: Sequence[nn.Parameter],
    denoiser: Denoiser,
    latents: Tensor,
    joined: bool = False,
    **keywords: Any,
) -> None:
    """Make an adversarial turn of which nothing remains: no gradient, no step of the heads, no draw, no statistics.

    Args:
        parameters: all that a backward pass through the denoiser may give a gradient to.
        denoiser, latents, keywords: as for the turn; of a joined one neither the loop's loss nor its backward is needed.
        joined: the turn is one whose gradient the loop's own pass computes. The loop's loss is then left alone with its graph,
            and so is every hook of a parameter, in which an optimizer may step: only the turn's graphs are pulled back.

    Raises:
        TurnOutOfMemoryError: it does not fit.
    """
    double = stand_in(turn)
    if not joined:
        with unchanged_gradients(parameters):
            double(denoiser, latents, **keywords | {"overflowed": None})
        return
    nothing = torch.zeros((), device=latents.device)
    apart = {"backward": _pulling_apart(parameters), "loss": nothing, "overflowed": None}
    with unchanged_gradients(()), preserved_rng():  # a joined pass draws from the loop's random state
        double(denoiser, latents, **keywords | apart)


def _pulling_apart(parameters: Sequence[nn.Parameter]) -> Callable[[Tensor], None]:
    """Return a backward pass that gives no parameter a gradient, and so fires no hook: it computes and forgets them."""
    chosen = list(smallest(parameters, PULLED))

    def pull_back(total: Tensor) -> None:
        if total.requires_grad and chosen:
            torch.autograd.grad(total, chosen, allow_unused=True)

    return pull_back


def smallest(parameters: Sequence[nn.Parameter], limit: int) -> Iterator[nn.Parameter]:
    """Yield the smallest parameters that have so many bytes together; at least one."""
    size = 0
    for count, parameter in enumerate(sorted(parameters, key=torch.Tensor.numel)):
        size += parameter.numel() * parameter.element_size()
        if count and size > limit:
            return
        yield parameter


class Headroom:
    """Makes a run's turns; where memory is limited, the first batch and each larger one is rehearsed, long before its turn.

    With `--adt_memory auto` a turn that does not fit steps down, lever by lever (`levers.py`), and is made again.

    Args:
        turn: of the run.
        limited: whether a device's memory is limited; elsewhere a rehearsal would tell nothing.
    """

    def __init__(self, turn: AdversarialTurn, limited: Callable[[torch.device], bool] = is_limited) -> None:
        self.turn, self.limited = turn, limited
        self.rehearsed: dict[tuple[bool, bool], int] = {}

    def is_larger(self, step: int, latents: Tensor) -> bool:
        """Return whether a turn on this batch is to be rehearsed: in any process none has been on so many latents.

        Args:
            step: the optimizer step that the batch belongs to, from 0; from 1 on the optimizer's moments are in memory, too.
            latents: as for the turn.
        """
        config = self.turn.config
        if config.weight == 0 or not self.limited(latents.device):
            return False
        return any_process(latents.numel() > self.rehearsed.get(self._kind(step, latents), 0), latents.device)

    def rehearse(
        self, step: int, parameters: Sequence[nn.Parameter], denoiser: Denoiser, latents: Tensor, **keywords: Any
    ) -> None:
        """Rehearse a turn on this batch; arguments as for `is_larger` and `rehearse`.

        Raises:
            TurnOutOfMemoryError: it does not fit, and no lever is left or may be pulled; the message names those that are.
        """
        self._fitting(lambda: rehearse(self.turn, parameters, denoiser, latents, **keywords), latents)
        self.rehearsed[self._kind(step, latents)] = latents.numel()
        logger.info("a rehearsed turn on latents %s fits into memory.", tuple(latents.shape))

    def make_turn(self, denoiser: Denoiser, latents: Tensor, **keywords: Any) -> TurnReport:
        """Make a turn; arguments as for the turn.

        Raises:
            TurnOutOfMemoryError: as for a rehearsal.
        """
        return self._fitting(lambda: self.turn(denoiser, latents, **keywords), latents)

    def _kind(self, step: int, latents: Tensor) -> tuple[bool, bool]:
        """Return what changes the memory that a turn needs or finds, beside the latents' size."""
        return step > 0, self.turn.memory.keeps_graphs(latents)

    def _fitting(self, attempt: Callable[[], Result], latents: Tensor) -> Result:
        """Call until it fits into memory."""
        while True:
            try:
                return attempt()
            except TurnOutOfMemoryError as error:
                stage, reason, in_gradient = error.stage, error.reason, error.in_gradient
            # Out here the error is gone, and with it the frames that held the turn's tensors.
            self.turn.optimizer.zero_grad(set_to_none=True)
            free_what_is_cached(latents.device)
            # Of several processes the others are in the middle of their turn; and half a gradient cannot be taken back.
            may_step_down = self.turn.config.memory == "auto" and world_size() == 1 and not in_gradient
            pulled = step_down(self.turn, latents, stage) if may_step_down else None
            if pulled is None:
                raise TurnOutOfMemoryError(stage, reason, in_gradient, self._sentence(stage, reason, latents))
            if rank() == 0:
                logger.warning("memory ran out in a turn's stage %r (%s): it goes on with %s.", stage, reason, pulled)

    def _sentence(self, stage: str, reason: str, latents: Tensor) -> str:
        levers = ", then ".join(map(str, settings_left(self.turn, latents)))
        return (
            f"memory ran out in a turn's stage {stage!r} on latents {tuple(latents.shape)} ({reason}): "
            f"{f'set {levers}' if levers else 'no --adt option is left that would need less'}."
        )
