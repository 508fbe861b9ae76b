"""`python watch.py RESULT SCRIPT ARGUMENTS...`: a real trainer with `--adt` that trains as ever, while somebody takes notes.

The result is one JSON object:

* `replays`: for every replayed call, the largest difference of its output from the unroll's for the same input;
* `clipped`: (norm of all gradients before the host clips them, after it);
* `stepped`: that norm when the host's optimizer steps;
* `modes`: in every turn, what a schedule-free optimizer says of its weights: True for those to train with.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from observing import run_observed
from torch import Tensor

from adt_plugin.core.diffusion import denoiser, unroll
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host.session import Session

NOTES: dict[str, list[Any]] = {"replays": [], "clipped": [], "stepped": [], "modes": []}


def watch_replays() -> None:
    """An unrolled call and its replay have the same seed."""
    outputs: dict[int, Tensor] = {}
    call_seeded = denoiser.call_seeded

    def noted(network: Any, model_input: Tensor, timestep: Tensor, seed: int) -> Tensor:
        output = call_seeded(network, model_input, timestep, seed)
        if torch.is_grad_enabled():
            NOTES["replays"].append(float((output - outputs[seed]).abs().max()))
        else:
            outputs[seed] = output.clone()
        return output

    denoiser.call_seeded = unroll.call_seeded = noted


def norm_of(parameters: list[Tensor]) -> float:
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())


def watch_the_host(accelerator: Any) -> None:
    """Its clipping and its optimizer, which it prepares later."""
    clip, prepare = accelerator.clip_grad_norm_, accelerator.prepare

    def clip_noted(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = list(parameters)
        before = norm_of(parameters)
        result = clip(parameters, *args, **kwargs)
        NOTES["clipped"].append((before, norm_of(parameters)))
        return result

    def prepare_noted(*objects: Any, **kwargs: Any) -> Any:
        prepared = prepare(*objects, **kwargs)
        for optimizer in [thing for thing in objects if isinstance(thing, torch.optim.Optimizer)]:
            optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: NOTES["stepped"].append(at_step(optimizer)))
        return prepared

    accelerator.clip_grad_norm_, accelerator.prepare = clip_noted, prepare_noted


def at_step(optimizer: Any) -> float:
    return norm_of([parameter for group in optimizer.param_groups for parameter in group["params"]])


def install() -> None:
    """Put the notes between the session and the host."""
    on_accelerator, turn = Session.on_accelerator, AdversarialTurn.__call__

    def with_accelerator(session: Session, accelerator: Any) -> None:
        watch_the_host(accelerator)
        on_accelerator(session, accelerator)

    def noted_turn(self: AdversarialTurn, *args: Any, **kwargs: Any) -> Any:
        optimizers = kwargs["backward"].func.__self__._optimizers  # the accelerator's, bound to the loss's keywords
        NOTES["modes"].append([group.get("train_mode") for optimizer in optimizers for group in optimizer.param_groups])
        return turn(self, *args, **kwargs)

    Session.on_accelerator, AdversarialTurn.__call__ = with_accelerator, noted_turn
    watch_replays()


if __name__ == "__main__":
    run_observed(lambda _: install()).write_text(json.dumps(NOTES))
