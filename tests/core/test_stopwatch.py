"""The clock that everything is timed with."""

from __future__ import annotations

import pytest
import torch
from pytest import MonkeyPatch

from adt_plugin.core.stopwatch import Stopwatch


def test_the_first_reading_starts_it(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", iter([100.0, 103.0, 107.0]).__next__)
    watch = Stopwatch()
    assert [watch.elapsed, watch.elapsed, watch.elapsed] == [0.0, 3.0, 7.0]


@pytest.mark.parametrize(("warm", "calls"), [(False, 4), (True, 3)])
def test_the_shortest_of_the_repeats_counts_and_a_cold_call_runs_once_before(
    monkeypatch: MonkeyPatch, warm: bool, calls: int
) -> None:
    monkeypatch.setattr("time.perf_counter", iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0]).__next__)
    done: list[int] = []
    assert Stopwatch(repeats=3).seconds(lambda: done.append(1), warm) == 2.0
    assert len(done) == calls


def test_time_of_the_process_does_not_grow_while_it_sleeps(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: pytest.fail("wall time"))
    monkeypatch.setattr("time.process_time", lambda: 4.0)
    assert Stopwatch(cpu_time=True).now() == 4.0


@pytest.mark.parametrize("cpu_time", [False, True])
def test_on_cuda_it_is_wall_time_after_all_queued_work(monkeypatch: MonkeyPatch, cpu_time: bool) -> None:
    order: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: order.append(str(device)))
    monkeypatch.setattr("time.perf_counter", lambda: order.append("read") or 3.0)
    assert Stopwatch(torch.device("cuda", 1), cpu_time=cpu_time).now() == 3.0
    assert order == ["cuda:1", "read"]
