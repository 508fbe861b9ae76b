"""Seconds and peak bytes of steps and their parts, measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from adt_plugin.config import ADTConfig
from adt_plugin.cost.formula import Parts, total, turn_shares
from adt_plugin.cost.live import LiveBytes
from adt_plugin.cost.workbench import Workbench, Workload, nbytes


@dataclass(frozen=True)
class Measured:
    """One way to take a step.

    Attributes:
        seconds: of the step, the least of the repeats. On a CPU: processor seconds of one thread.
        turn: of the turn alone; 0 for a step without one.
        parts: the sum of the turn's parts, each measured alone; 0 for a step without a turn and for the naive way.
        peak: bytes of tensors at the step's highest; on CUDA as the allocator counts them.
        backbone: bytes of the frozen backbone's weights, part of every peak but the plain step's.
    """

    seconds: float
    turn: float
    parts: float
    peak: int
    backbone: int


class Stopwatch:
    """Measures calls on a device.

    Args:
        repeats: of every timed call, after one that does not count.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def seconds(self, call: Callable[[], object]) -> float:
        """The least of the repeats: what disturbs a measurement makes it longer."""
        call()
        return min(self._once(call) for _ in range(self.repeats))

    def _once(self, call: Callable[[], object]) -> float:
        began = self.now()
        call()
        return self.now() - began

    def now(self) -> float:
        """On CUDA wall time after all queued work; elsewhere the process's own time, which other processes do not lengthen."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


def peak_bytes(bench: Workbench, call: Callable[[], object]) -> int:
    """The most bytes alive during a call, everything resident included."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        call()
        torch.cuda.synchronize(bench.device)
        return torch.cuda.max_memory_allocated(bench.device)
    with LiveBytes(bench.tensors()) as live:
        call()
        return live.peak


def measured_parts(bench: Workbench, watch: Stopwatch) -> Parts:
    """Seconds of every part alone."""
    parts = Parts(**{name: watch.seconds(getattr(bench, name)) for name in Parts.__dataclass_fields__})
    bench.optimizer.zero_grad(set_to_none=True)
    return parts


def without_visual(bench: Workbench) -> int:
    """Bytes that a run without `--adt` would not hold."""
    return nbytes(bench.visual_tensors()) + nbytes(bench.head_tensors())


def measure_plain(bench: Workbench, watch: Stopwatch) -> Measured:
    """A step of the host."""
    seconds = watch.seconds(bench.plain_step)
    peak = peak_bytes(bench, bench.plain_step) - without_visual(bench)
    return Measured(seconds, 0.0, 0.0, peak, nbytes(bench.backbone_tensors()))


def measure_turn(bench: Workbench, watch: Stopwatch, parts: Parts, start: int) -> Measured:
    """A step with a turn that unrolls `start` steps; the workbench's options must allow no other start."""
    seconds = watch.seconds(bench.adt_step)
    turn = watch.seconds(bench.adversarial_turn)
    bench.optimizer.zero_grad(set_to_none=True)
    expected = total(list(turn_shares(parts, bench.config, start)))
    return Measured(seconds, turn, expected, peak_bytes(bench, bench.adt_step), nbytes(bench.backbone_tensors()))


def measure_naive(bench: Workbench, watch: Stopwatch, start: int, grad_steps: int) -> Measured:
    """A step with the whole unroll in one graph."""

    def step() -> None:
        bench.naive_step(start, grad_steps)

    return Measured(watch.seconds(step), 0.0, 0.0, peak_bytes(bench, step), nbytes(bench.backbone_tensors()))


def prepared(workload: Workload, config: ADTConfig, device: torch.device) -> Workbench:
    """A workbench in the middle of a run: AdamW has its moments, the heads have collected their statistics."""
    bench = Workbench(workload, config, device)
    bench.plain_step()
    for head in bench.discriminator.score.heads:
        head.standardize.seen = head.standardize.updates  # type: ignore[union-attr]
    return bench
