"""Seconds and peak bytes of steps and their parts, measured."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts
from adt_plugin.core.images.decoding import resolve_dtype
from adt_plugin.core.stopwatch import Stopwatch
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.cost.live import LiveBytes
from adt_plugin.cost.workbench import Workbench, Workload, moments_of, nbytes


@dataclass(frozen=True)
class Base:
    """What a workload costs without turns, and the parts that turns are made of.

    Attributes:
        seconds: of the host's step, its optimizer's included.
        peak: bytes of tensors at that step's highest, nothing of the plugin's included.
        backbone: bytes of the frozen backbone's weights.
        parts: seconds of each part alone.
    """

    seconds: float
    peak: int
    backbone: int
    parts: Parts


@dataclass(frozen=True)
class Measured:
    """What one way to supervise the sampler adds to the host's step.

    Attributes:
        seconds: that it adds.
        peak: bytes of tensors at the highest of the whole step.
    """

    seconds: float
    peak: int


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Run PyTorch on one thread inside where the CPU is measured; on CUDA nothing changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if device.type == "cuda" else 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def prepared(workload: Workload, config: ADTConfig, device: torch.device) -> Workbench:
    """Build a workbench as in the middle of a run: AdamW has its moments, the heads have collected their statistics."""
    bench = Workbench(workload, config, device, resolve_dtype(config.decode_dtype, device))
    bench.plain_step()
    bench.settle()
    return bench


def peak_bytes(bench: Workbench, call: Callable[[], object], others: Sequence[Tensor] = ()) -> int:
    """Return the most bytes alive during a call, everything resident included; on CUDA as the allocator counts them.

    Args:
        others: that stay between steps, beside the workbench's.
    """
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        call()
        torch.cuda.synchronize(bench.device)
        return torch.cuda.max_memory_allocated(bench.device)
    with LiveBytes([*bench.tensors(), *others]) as live:
        call()
        return live.peak


def measure_base(bench: Workbench, watch: Stopwatch) -> Base:
    """Measure the host's step, and every part of a turn alone."""
    peak = peak_bytes(bench, bench.plain_step) - bench.own_bytes()
    seconds = watch.seconds(bench.plain_step, warm=True)
    parts = Parts(**{name: watch.seconds(getattr(bench, name)) for name in Parts.__dataclass_fields__})
    bench.optimizer.zero_grad(set_to_none=True)
    return Base(seconds, peak, nbytes(bench.backbone_tensors()), parts)


def measure_turn(bench: Workbench, watch: Stopwatch, config: ADTConfig, start: int) -> Measured:
    """Measure a turn with these options that unrolls `start` steps."""
    turn = bench.turn(always_from(config, start))
    bench.place(config)
    peak = peak_of_turn(bench, turn)
    seconds = watch.seconds(lambda: turn(bench.denoiser, bench.clean), warm=True)
    bench.optimizer.zero_grad(set_to_none=True)
    return Measured(seconds, peak)


def peak_of_turn(bench: Workbench, turn: AdversarialTurn) -> int:
    """Return the peak bytes of a step with a turn, where the heads' AdamW has its moments as in the middle of a run."""
    for parameter in bench.discriminator.parameters():
        parameter.grad = torch.zeros_like(parameter)
    turn.optimizer.step()
    turn.optimizer.zero_grad(set_to_none=True)
    return peak_bytes(bench, lambda: bench.adt_step(turn), moments_of(turn.optimizer))


def always_from(config: ADTConfig, start: int) -> ADTConfig:
    """Return the same options without a warm-up and with this start alone."""
    fraction = start / config.steps
    return replace(config, start_min=fraction, start_max=fraction, warmup=0)


def device_name(device: torch.device) -> str:
    """Return the device's name as tables show it: the card's, or the processor's with what was used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, one thread"


def _processor() -> str:
    """Return the processor's name as the kernel or the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
