"""Three hundred turns with rows, pictures and states: memory and file handles stay flat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adt_plugin.core.run import state
from adt_plugin.core.run.health import Health
from adt_plugin.core.run.monitor import Monitor
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn

TURNS, SETTLED = 300, 100
STATM, HANDLES = Path("/proc/self/statm"), Path("/proc/self/fd")


def resident_megabytes() -> float:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not STATM.exists(), reason="reads memory and file handles from Linux's /proc")
def test_memory_and_file_handles_stay_flat(tmp_path: Path) -> None:
    turn, net, watch = toy_turn(warmup=10), ToyDenoiser(), Health(10)
    monitor = Monitor(tmp_path, "soak", 10, {})
    memory, handles = [], []
    for step in range(TURNS):
        diffusion_backward(turn, net, toy_latents(seed=step))
        report = turn(net, toy_latents(seed=step))
        monitor.record(report, step)
        watch.examine(report)
        net.zero_grad()
        if step % 50 == 0:
            state.write(state.capture(turn, turn.config, step), tmp_path)
        memory.append(resident_megabytes())
        handles.append(len(list(HANDLES.iterdir())))
    growth = max(memory[SETTLED:]) - memory[SETTLED]
    assert growth < 8, f"{growth:.1f} MB over {TURNS - SETTLED} turns"
    assert handles[-1] <= handles[SETTLED]
    assert len((tmp_path / "soak-adt.jsonl").read_text().splitlines()) == TURNS + 1
