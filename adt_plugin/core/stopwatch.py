"""One clock for everything that is timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class Stopwatch:
    """Measures seconds: wall time, read once the work queued on a CUDA device is done.

    Args:
        device: where the timed work runs; None stands for the CPU.
        repeats: how often `seconds` times a call.
        cpu_time: on a CPU, count this process's own time, which other processes do not lengthen.
    """

    def __init__(self, device: torch.device | None = None, repeats: int = 1, cpu_time: bool = False) -> None:
        self.device, self.repeats = device or torch.device("cpu"), repeats
        self.cpu_time = cpu_time and self.device.type != "cuda"
        self.began: float | None = None

    def now(self) -> float:
        """Return the seconds on a clock of unknown zero."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.cpu_time else time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since this property was first read: the first reading starts the stopwatch and is 0."""
        now = self.now()
        if self.began is None:
            self.began = now
        return now - self.began

    def seconds(self, call: Callable[[], object], warm: bool = False) -> float:
        """Return the shortest of `repeats` runs of a call: whatever disturbs a measurement makes it longer.

        Args:
            warm: the call has run before; otherwise it runs once untimed.
        """
        if not warm:
            call()
        return min(self._once(call) for _ in range(self.repeats))

    def _once(self, call: Callable[[], object]) -> float:
        began = self.now()
        call()
        return self.now() - began


class Interval:
    """Seconds of a device's work from here to `seconds`; what was queued before is not in it, and nothing waits for that.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        for event in self.events[:1]:
            event.record()
        self.began = time.perf_counter()

    def seconds(self) -> float:
        """Return them, once the work is done."""
        if not self.events:
            return time.perf_counter() - self.began
        first, last = self.events
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000
