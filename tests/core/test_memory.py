"""When graphs are kept, on a device whose memory is made up."""

from __future__ import annotations

import pytest
import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.memory import GraphMemory, probe_of
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn

GRAPH = 1000


class FakeMemory:
    """A replayed step's graph takes GRAPH bytes; so much is free."""

    def __init__(self, free: int) -> None:
        self.held, self.left = 50, free

    def allocated(self) -> int:
        self.held += GRAPH  # before the replay, and again when its first backward begins
        return self.held

    def free(self) -> int:
        return self.left


def decided(free: int, **options: object) -> bool:
    probe = FakeMemory(free)
    memory = GraphMemory(ADTConfig(memory="auto", **options), lambda device: probe)  # type: ignore[arg-type]
    assert not memory.keeps_graphs(toy_latents())
    passed = []
    backward = memory.measuring(passed.append, toy_latents())
    backward(torch.ones(()))
    backward(torch.ones(()))
    assert len(passed) == 2
    return memory.keeps_graphs(toy_latents())


@pytest.mark.parametrize(("mode", "kept"), [("low", False), ("fast", True)])
def test_low_and_fast_do_as_they_are_told(mode: str, kept: bool) -> None:
    memory = GraphMemory(ADTConfig(memory=mode))
    assert memory.keeps_graphs(toy_latents()) is kept
    assert memory.measuring(torch.Tensor.backward, toy_latents()) is torch.Tensor.backward


@pytest.mark.parametrize(
    ("options", "graphs"), [({"grad_steps": 2}, 2), ({"grad_steps": 7, "steps": 3}, 3), ({"grad_mask": "all", "steps": 5}, 5)]
)
def test_auto_keeps_what_fits_into_the_free_memory(options: dict[str, object], graphs: int) -> None:
    enough = int(graphs * GRAPH / 0.8)
    assert decided(enough, **options)
    assert not decided(enough - 1, **options)


def test_auto_decides_for_each_shape_of_latents_once() -> None:
    memory = GraphMemory(ADTConfig(memory="auto"), lambda device: FakeMemory(10**9))
    memory.measuring(lambda loss: None, toy_latents())(torch.ones(()))
    assert memory.keeps_graphs(toy_latents())
    assert not memory.keeps_graphs(toy_latents(batch=5))
    assert memory.measuring(torch.Tensor.backward, toy_latents()) is torch.Tensor.backward


def test_auto_is_low_where_free_memory_is_not_known() -> None:
    assert probe_of(torch.device("cpu")) is None
    memory = GraphMemory(ADTConfig(memory="auto"))
    assert memory.measuring(torch.Tensor.backward, toy_latents()) is torch.Tensor.backward
    assert not memory.keeps_graphs(toy_latents())


def test_a_turn_replays_first_and_keeps_graphs_once_it_knows_that_they_fit() -> None:
    turn, net = toy_turn(memory="auto", grad_steps=2, start_min=1.0), ToyDenoiser()
    turn.memory.probe = lambda device: FakeMemory(10**9)
    calls = []
    for _ in range(2):
        diffusion_backward(turn, net, toy_latents())
        before = net.calls
        turn(net, toy_latents())
        calls.append(net.calls - before)
    assert calls == [5 + 2, 5]


@pytest.mark.parametrize(("device", "processes", "known"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 1, False)])
def test_free_memory_is_known_on_one_processes_cuda_device(
    device: str, processes: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the driver counts as free, not all that the device has."""
    monkeypatch.setattr("adt_plugin.core.diffusion.memory.world_size", lambda: processes)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 10))
    probe = probe_of(torch.device(device))
    assert (probe is not None) == known
    assert probe is None or probe.free() == 3
