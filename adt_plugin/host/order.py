"""What comes first in a batch: the host's backward pass and then the turn, or the turn and then one pass for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch.utils.checkpoint
from torch import Tensor

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.gradient_path import Backward
from adt_plugin.host.batch import Predicted
from adt_plugin.host.calls import DenoiserCall
from adt_plugin.host.run import Run
from adt_plugin.host.seams import Undo, rebind


class Order(Protocol):
    """One way through a batch of training."""

    def predicted(self, run: Run, batch: Predicted, prediction: Tensor) -> Predicted:
        """Take in the denoiser's output in the diffusion loss; return the batch with what has to be kept of it."""

    def backward(self, run: Run, batch: Predicted, step: int, loss: Tensor, backward: Backward) -> None:
        """Pull the loss back, and make a turn if one is due in this optimizer step.

        Args:
            backward: the host's own.
        """


class HostFirst:
    """The host's pass, then the turn's own passes, which go through the DistributedDataParallel that counts them."""

    def predicted(self, run: Run, batch: Predicted, prediction: Tensor) -> Predicted:
        """Let the balance watch the gradient there."""
        run.turn.watch(prediction, run.loss_scale)
        return batch

    def backward(self, run: Run, batch: Predicted, step: int, loss: Tensor, backward: Backward) -> None:
        """Pull back the loss, then the turn; a rehearsal, if there is to be one, lies between them."""
        backward(loss)
        run.rehearse(batch, step, lambda call: call, backward)
        if run.turn.due(step):
            run.make_turn(batch, step, backward, lambda call: call)


class Together:
    """The turn, then one pass for it and the host's loss; a DistributedDataParallel sees the host's own call alone."""

    def predicted(self, run: Run, batch: Predicted, prediction: Tensor) -> Predicted:
        """Keep the prediction: its gradient is taken before the pass."""
        return replace(batch, prediction=prediction)

    def backward(self, run: Run, batch: Predicted, step: int, loss: Tensor, backward: Backward) -> None:
        """Pull back the sum, or the loss alone; a rehearsal comes before, since its graph and the loss's are alive together."""
        if batch.prediction is not None:
            run.turn.measure(loss, batch.prediction, run.loss_scale)
            batch = replace(batch, prediction=None)
        run.rehearse(replace(batch, call=batch.call.detached()), step, DenoiserCall.unwrapped)
        if run.turn.due(step):
            run.make_turn(batch, step, backward, DenoiserCall.unwrapped, loss)
        else:
            backward(loss)


ONE_PASS: tuple[Callable[[ADTConfig, Any], bool], ...] = (
    lambda config, accelerator: config.memory == "joined",
    # DistributedDataParallel averages one pass at a time, and kept graphs would need another for every step
    lambda config, accelerator: config.memory == "fast" and accelerator.num_processes > 1,
)
"""Runs in which one pass does it all, by the options and the host's accelerator."""


def order_for(config: ADTConfig, accelerator: Any) -> Order:
    """Return the order of a run."""
    return Together() if any(holds(config, accelerator) for holds in ONE_PASS) else HostFirst()


def without_reentrance() -> Undo:
    """Make every gradient checkpointing in the process non-reentrant, with the same gradient.

    The reentrant kind runs a backward pass of its own for each checkpointed call, so that a parameter's hooks, from which
    optimizers step and gradients are averaged, would fire once for every call within one pass.

    Returns:
        What gives PyTorch its own back.
    """
    original = torch.utils.checkpoint.checkpoint

    def checkpoint(function: Any, *args: Any, use_reentrant: bool | None = None, **kwargs: Any) -> Any:
        return original(function, *args, use_reentrant=False, **kwargs)

    rebind(original, checkpoint)
    return lambda: rebind(checkpoint, original)
