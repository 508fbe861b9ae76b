"""A resumable training loop: AdamW, clipping, an average of the weights, a log, a checkpoint every few minutes."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo.optimizing import adamw, follow, set_learning_rate, young

Loss = Callable[[torch.Generator], Tensor]
"""Draws a batch from the generator and returns its loss, 0-dim."""

Validate = Callable[[nn.Module], Mapping[str, float]]
"""Figures of the averaged network, for the log."""


@dataclass(frozen=True)
class Training:
    """How one network is trained.

    Attributes:
        steps: optimizer steps.
        lr: highest learning rate, reached after `rise` steps.
        lr_end: lowest one, reached after `fall` of all steps along a cosine and kept to the end.
        average: decay of the weights' exponential moving average, a step; 0 takes the weights themselves.
        weight_decay: AdamW's.
        validate_every: steps between two entries of the log.
    """

    steps: int
    lr: float = 1e-3
    lr_end: float = 1e-5
    rise: int = 200
    fall: float = 1.0
    average: float = 0.0
    weight_decay: float = 0.0
    validate_every: int = 1000

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        along = min(1.0, step / (self.fall * self.steps))
        cosine = self.lr_end + (self.lr - self.lr_end) * (0.5 + 0.5 * math.cos(math.pi * along))
        return cosine * min(1.0, (step + 1) / self.rise)


def train(
    network: nn.Module, loss: Loss, plan: Training, checkpoint: Path, seed: int, validate: Validate = lambda network: {}
) -> nn.Module:
    """Train `network`, going on from `checkpoint` where it exists, and return its averaged copy in evaluation mode.

    The log lies beside the checkpoint, as `.jsonl`: step, seconds, mean loss since the last entry, and what `validate` found.
    """
    optimizer = adamw(network, plan.lr, plan.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    averaged = copy.deepcopy(network).requires_grad_(False)
    step, seconds, log = 0, 0.0, []
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step, seconds, log = state["step"], state["seconds"], state["log"]
    began, total = time.monotonic() - seconds, torch.zeros(())
    while step < plan.steps:
        network.train()
        set_learning_rate(optimizer, plan.lr_at(step))
        value = loss(generator)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        follow(averaged, network, young(plan.average, step))
        step, total = step + 1, total + value.detach()
        if step % plan.validate_every == 0 or step == plan.steps:
            since = step - log[-1]["step"] if log else step
            entry = {"step": step, "seconds": round(time.monotonic() - began), "loss": round(float(total) / since, 5)}
            log.append(entry | {name: round(figure, 4) for name, figure in validate(averaged.eval()).items()})
            total = torch.zeros(())
            print(checkpoint.stem, json.dumps(log[-1]), flush=True)
            state = {"network": network.state_dict(), "averaged": averaged.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"generator": generator.get_state(), "step": step, "seconds": time.monotonic() - began, "log": log}
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, partial := checkpoint.with_suffix(".partial"))
            partial.replace(checkpoint)
            write_atomically(checkpoint.with_suffix(".jsonl"), "".join(json.dumps(line) + "\n" for line in log))
    return averaged.eval()


def what_to_train(bed: str, description: str, names: Iterable[str], destination: str) -> argparse.Namespace:
    """Read a bed's command line: `names` of what to train, in order, the folder `work`, and whether to `write`.

    Args:
        bed: its module below `benchmarks.beds`.
        destination: where `--write` puts what was trained.
    """
    parser = argparse.ArgumentParser(f"python -m benchmarks.beds.{bed}", description=description.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=tuple(names), help="what to train, in this order")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--write", action="store_true", help=f"put what was trained, and its log, into {destination}")
    torch.set_num_threads(1)
    return parser.parse_args()
