"""Turns tried before they count: nothing remains of them, and what does not fit is found and said before it costs anything."""

from __future__ import annotations

import copy
import gc
import random
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core import turn as turns
from adt_plugin.core.errors import AdtError
from adt_plugin.core.out_of_memory import OUT_OF_MEMORY, TurnOutOfMemoryError
from adt_plugin.core.report import TurnReport
from adt_plugin.core.run import levers, rehearsal, state
from adt_plugin.core.run.rehearsal import Headroom, is_limited, rehearse, stand_in, unchanged_gradients
from adt_plugin.core.turn import AdversarialTurn
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """What is in memory already is not looked at again whenever a turn's remains are collected."""
    gc.freeze()
    yield
    gc.unfreeze()


def everything(turn: AdversarialTurn) -> dict[str, Tensor]:
    """All that a turn carries over to the next."""
    return state.capture(turn, turn.config).tensors | {"turns": torch.tensor(turn.turns), "starts": torch.tensor(turn.starts)}


def one_batch(turn: AdversarialTurn, net: ToyDenoiser, seed: int = 3, batch: int = 2) -> Tensor:
    """The host's step up to the turn; the clean latents."""
    latents = toy_latents(batch, seed)
    diffusion_backward(turn, net, latents)
    return latents


def settled(**options: object) -> tuple[AdversarialTurn, ToyDenoiser]:
    """A turn in the middle of a run: history, moments and averages are there."""
    turn, net = toy_turn(**options), ToyDenoiser(dropout=0.2).train()
    for seed in range(2):
        turn(net, one_batch(turn, net, seed))
        net.zero_grad()
    return turn, net


# What a rehearsal leaves behind


@pytest.mark.parametrize(
    "options", [{}, {"warmup": 9}, {"memory": "fast"}, {"noise": 0.1, "disc_type": "unary"}, {"balance": "ratio"}], ids=str
)
@pytest.mark.parametrize("made", [0, 2])
def test_nothing_remains_of_a_rehearsal(options: dict[str, Any], made: int) -> None:
    turn, net = settled(**options) if made else (toy_turn(**options), ToyDenoiser(dropout=0.2).train())
    latents = one_batch(turn, net)
    net.last.bias.grad = None  # such as that of a layer which the diffusion loss does not reach
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    holders = {name: p.grad for name, p in net.named_parameters()}
    before, averages = everything(turn), copy.deepcopy(vars(turn.balance))
    found = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    rehearse(turn, list(net.parameters()), net, latents)
    after = everything(turn)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert str(averages["diffusion"].__dict__) == str(vars(turn.balance)["diffusion"].__dict__)
    for name, p in net.named_parameters():
        expected = gradients[name]
        assert p.grad is holders[name]
        assert expected is None or torch.equal(p.grad.view(torch.int32), expected.view(torch.int32))
    assert all(p.grad is None for p in turn.discriminator.parameters())
    assert random.getstate() == found[0] and np.random.get_state()[1].tolist() == found[1]
    assert torch.equal(torch.get_rng_state(), found[2])


def test_a_rehearsal_is_a_whole_adversarial_turn_on_the_longest_path() -> None:
    turn, net = toy_turn(warmup=100, grad_steps=2, start_min=0.2), ToyDenoiser()
    latents, calls, backwards = one_batch(turn, net), net.calls, []

    def backward(loss: Tensor) -> None:
        backwards.append(loss.item())
        loss.backward()

    rehearse(turn, list(net.parameters()), net, latents, backward=backward)
    assert net.calls - calls == 5 + 2 and len(backwards) == 2
    assert any(value != 0 for value in backwards)
    assert turn.turns == 0


def test_the_stand_in_shares_what_is_frozen_and_nothing_that_changes() -> None:
    turn, _ = settled()
    double = stand_in(turn)
    assert double.decode is turn.decode and double.discriminator.backbone is turn.discriminator.backbone
    assert double.offload is turn.offload
    assert double.discriminator.augment.generator is double.discriminator.generator is not turn.discriminator.generator
    mine, own = (
        {id(p) for p in turn.discriminator.parameters()},
        [p for g in double.optimizer.param_groups for p in g["params"]],
    )
    assert (
        own and not mine & {id(p) for p in own} and {id(p) for p in own} == {id(p) for p in double.discriminator.parameters()}
    )
    assert all(double.optimizer.state[p]["exp_avg"].abs().sum() > 0 for p in own if p.ndim == 4)


@pytest.mark.parametrize("options", [{}, {"warmup": 2}, {"memory": "fast"}], ids=str)
def test_a_run_with_rehearsals_is_the_run_without_them_bit_for_bit(options: dict[str, Any]) -> None:
    def run(limited: bool) -> tuple[list[Tensor], list[tuple[float, ...]], dict[str, Tensor]]:
        turn, net = toy_turn(**options), ToyDenoiser(dropout=0.3).train()
        headroom, optimizer, rows = Headroom(turn, lambda device: limited), torch.optim.AdamW(net.parameters(), lr=1e-2), []
        torch.manual_seed(1)
        for step in range(4):
            latents = one_batch(turn, net, step, batch=1 + step % 3)
            report = followed(headroom, step, net, latents)
            optimizer.step()
            optimizer.zero_grad()
            rows.append((report.loss_g, report.loss_d, report.grad_norm, report.start))
        assert bool(headroom.rehearsed) == limited
        return [p.detach() for p in net.parameters()], rows, everything(turn)

    (weights, rows, kept), (plain_weights, plain_rows, plain_kept) = run(True), run(False)
    assert rows == plain_rows
    assert all(torch.equal(a, b) for a, b in zip(weights, plain_weights, strict=True))
    assert all(torch.equal(kept[name], plain_kept[name]) for name in plain_kept)


# When there is one


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that were rehearsed."""
    sizes: list[int] = []
    original = rehearsal.rehearse

    def noted(turn: Any, parameters: Any, denoiser: Any, latents: Tensor, **keywords: Any) -> None:
        sizes.append(len(latents))
        original(turn, parameters, denoiser, latents, **keywords)

    monkeypatch.setattr(rehearsal, "rehearse", noted)
    return sizes


def sizes_of(batches: list[tuple[int, int]], rehearsed: list[int], limited: bool = True, **options: object) -> list[int]:
    """What is rehearsed in a run of (optimizer step, batch size)."""
    turn, net = toy_turn(**options), ToyDenoiser()
    headroom = Headroom(turn, lambda device: limited)
    for step, batch in batches:
        followed(headroom, step, net, one_batch(turn, net, batch=batch))
    return rehearsed


def test_the_first_batch_the_first_with_moments_and_every_larger_one(rehearsed: list[int]) -> None:
    batches = [(0, 2), (0, 1), (0, 3), (0, 3), (1, 1), (2, 1), (3, 2), (4, 1), (5, 4), (6, 4)]
    assert sizes_of(batches, rehearsed, warmup=100) == [2, 3, 1, 2, 4]


@pytest.mark.parametrize("options", [{"limited": False}, {"weight": 0.0}], ids=str)
def test_there_is_none_where_it_would_tell_nothing(rehearsed: list[int], options: dict[str, Any]) -> None:
    assert sizes_of([(0, 2), (1, 3)], rehearsed, **options) == []


def test_kept_graphs_are_rehearsed_once_the_plugin_has_decided_to_keep_them(rehearsed: list[int]) -> None:
    turn, net = toy_turn(memory="auto"), ToyDenoiser()
    turn.memory.probe = lambda device: Roomy()
    headroom = Headroom(turn, lambda device: True)
    for step in (1, 2, 3):
        followed(headroom, step, net, one_batch(turn, net))
    assert rehearsed == [2, 2]


class Roomy:
    """A device with room for every graph."""

    def allocated(self) -> int:
        return 0

    def free(self) -> int:
        return 10**9


@pytest.mark.parametrize(("device", "limited"), [("cuda", True), ("xpu", True), ("cpu", False), ("mps", False)])
def test_where_memory_is_limited(device: str, limited: bool) -> None:
    assert is_limited(torch.device(device)) is limited


def test_all_processes_rehearse_or_none_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(rehearsal, "any_process", lambda flag, device: asked.append(flag) or True)
    headroom, latents = Headroom(toy_turn(), lambda device: True), toy_latents()
    headroom.rehearsed[False, False] = latents.numel()
    assert headroom.is_larger(0, latents) and asked == [False]


# Memory that runs out


class Scarce:
    """Raises PyTorch's error in a stage of a turn, for as long as `holds` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stage: str, holds: Callable[[], bool]) -> None:
        self.holds, self.raised, self.held = holds, 0, []
        module, name = {
            "unroll": (AdversarialTurn, "_walk"),
            "decode": (turns, "decode_generated"),
            "observe": (turns, "score_generated"),
            "gradient": (turns, "leaf_gradients"),
            "discriminator": (turns, "discriminator_gradients"),
            "replay": (turns, "replay"),
        }[stage]
        original = getattr(module, name)

        def scarce(*args: Any, **keywords: Any) -> Any:
            if name == "replay" and self.holds():
                return self._half(original, *args, **keywords)
            result = original(*args, **keywords)
            return self._out_of_memory(result) if self.holds() else result

        monkeypatch.setattr(module, name, scarce)

    def _half(self, replay: Callable[..., None], denoiser: Any, path: Any, gradients: dict[int, Tensor], backward: Any) -> None:
        """One of the steps is replayed, then there is no more memory."""
        first = min(gradients)
        replay(denoiser, path, {first: gradients[first]}, backward)
        self._out_of_memory(path)

    def _out_of_memory(self, result: Any) -> None:
        self.raised += 1
        found = result.latents if hasattr(result, "latents") else result
        self.held.append(weakref.ref(found[0] if isinstance(found, (tuple, list)) else found))
        raise OUT_OF_MEMORY(f"{SAID}. GPU 0 has 8.00 GiB. Including non-PyTorch memory, this process has more.\nAnd more lines")


def followed(headroom: Headroom, step: int, net: ToyDenoiser, latents: Tensor, **keywords: Any) -> TurnReport:
    """A batch whose turn is due, as a training loop follows it."""
    if headroom.is_larger(step, latents):
        headroom.rehearse(step, list(net.parameters()), net, latents, **keywords)
    return headroom.make_turn(net, latents, **keywords)


STAGES = ("unroll", "decode", "observe", "gradient", "discriminator", "replay")


def tried(turn: AdversarialTurn, net: ToyDenoiser, limited: bool, latents: Tensor | None = None) -> TurnOutOfMemoryError:
    latents = one_batch(turn, net) if latents is None else latents
    with pytest.raises(TurnOutOfMemoryError) as refused:
        followed(Headroom(turn, lambda device: limited), 3, net, latents)
    return refused.value


@pytest.mark.parametrize("limited", [True, False], ids=["in a rehearsal", "in a turn"])
@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_runs_out_is_said_with_what_to_set(stage: str, limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, net = settled(memory="fast")
    turn.latent_pixels = 64
    scarce = Scarce(monkeypatch, stage, lambda: True)
    latents = one_batch(turn, net)
    before = net.gradients().clone()
    error = tried(turn, net, limited, latents)
    assert isinstance(error, AdtError) and error.stage == stage and scarce.raised == 1
    assert str(error) == (
        f"memory ran out in a turn's stage '{stage}' on latents {tuple(latents.shape)} ({SAID}. GPU 0 has 8.00 "
        "GiB): set --adt_memory low (now fast), then --adt_decode_crop 128 (now 256), then --adt_offload (now off)."
    )
    assert all(p.grad is None for p in turn.discriminator.parameters())
    in_gradient = stage == "replay" and not limited
    assert error.in_gradient is in_gradient
    assert torch.equal(net.gradients(), before) is not in_gradient  # as the diffusion loss left it


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_turn_held_is_gone_before_anything_else_is_done(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, net = settled(memory="auto")
    scarce, alive = Scarce(monkeypatch, stage, lambda: not alive), []
    monkeypatch.setattr(
        rehearsal, "step_down", lambda turn, *rest: alive.extend(held() for held in scarce.held) or levers.Setting("x", "y")
    )
    followed(Headroom(turn, lambda device: True), 1, net, one_batch(turn, net))
    assert alive == [None]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    yield lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("limited", [True, False], ids=["in a rehearsal", "in a turn"])
def test_auto_steps_down_once_for_each_lever_and_the_turn_is_made(
    limited: bool, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    turn, net = settled(memory="auto", decode_crop=0)
    turn.latent_pixels, latents = 64, one_batch(turn, net)  # images of 512 pixels
    turn.memory.fits[latents.shape] = True
    Scarce(monkeypatch, "decode", lambda: turn.config.decode_crop != 128)
    before = net.gradients().clone()
    report = followed(Headroom(turn, lambda device: limited), 1, net, latents)
    assert [said.partition("it goes on with ")[2] for said in warnings()] == [
        "--adt_memory low (now auto).",
        "--adt_decode_crop 256 (now 0, the whole image).",
        "--adt_decode_crop 128 (now 256).",
    ]
    assert report.turn == 3 and report.gen.shape[-1] == 2 * 128 // 64 and not turn.memory.keeps_graphs(latents)
    assert not torch.equal(net.gradients(), before)


def test_a_turn_made_after_stepping_down_adds_its_gradient_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def added(scarce: bool) -> float:
        turn, net = toy_turn(memory="auto", balance="none", weight=1.0, start_min=1.0), ToyDenoiser()
        latents, failures = one_batch(turn, net), iter([scarce])
        before = net.gradients().clone()
        backwards: list[float] = []

        def backward(loss: Tensor) -> None:
            backwards.append(1)
            loss.backward()

        with monkeypatch.context() as patch:
            Scarce(patch, "gradient", lambda: next(failures, False))
            turn.latent_pixels = 64
            followed(Headroom(turn, lambda device: False), 1, net, latents, backward=backward)
        assert len(backwards) == 2 and turn.turns == 1
        return float((net.gradients() - before).norm())

    assert 0 < added(True) < 10 * added(False)


@pytest.mark.parametrize("stage", ["unroll", "discriminator"])
def test_where_the_window_is_not_in_memory_the_frozen_networks_leave_it(
    stage: str, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    turn, net = settled(memory="auto")
    Scarce(monkeypatch, stage, lambda: not turn.offload.modules)
    followed(Headroom(turn, lambda device: True), 1, net, one_batch(turn, net))
    assert [said.partition("it goes on with ")[2] for said in warnings()] == ["--adt_offload (now off)."]
    assert turn.offload.modules == [turn.discriminator.backbone] and turn.config.decode_crop == 256


def test_auto_gives_up_when_no_lever_helps_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, net = settled(memory="auto")
    Scarce(monkeypatch, "unroll", lambda: True)
    error = tried(turn, net, limited=True)
    assert "no --adt option is left that would need less" in str(error)


def test_half_a_gradient_of_a_true_turn_ends_the_run_under_auto_too(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, net = settled(memory="auto")
    scarce = Scarce(monkeypatch, "replay", lambda: True)
    assert tried(turn, net, limited=False).in_gradient and scarce.raised == 1


def test_of_several_processes_none_steps_down_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, net = settled(memory="auto")
    Scarce(monkeypatch, "unroll", lambda: True)
    monkeypatch.setattr(rehearsal, "world_size", lambda: 2)
    assert "--adt_offload (now off)" in str(tried(turn, net, limited=False)) and not turn.offload.modules


def test_a_turn_of_its_own_names_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, net = toy_turn(), ToyDenoiser()
    latents = one_batch(turn, net)
    Scarce(monkeypatch, "decode", lambda: True)
    with pytest.raises(OUT_OF_MEMORY, match=r"memory ran out in a turn's stage 'decode' \(CUDA out of memory"):
        turn(net, latents)


@pytest.mark.parametrize(
    ("crop", "sides", "half"),
    [(0, (16, 16), 512), (0, (12, 20), 640), (512, (16, 16), 256), (256, (16, 16), 128), (128, (16, 16), 0)],
)
def test_the_next_smaller_window(crop: int, sides: tuple[int, int], half: int) -> None:
    turn = toy_turn(decode_crop=crop)
    turn.latent_pixels = 64
    assert levers.smaller_window(turn, torch.zeros(1, 4, *sides)) == half


def test_every_stage_has_a_lever() -> None:
    assert {stage for lever in levers.LEVERS for stage in lever.stages} == set(STAGES)


def test_gradients_are_put_back_after_any_error() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([-0.0, float("nan"), 3.0])
    bits = parameter.grad.view(torch.int32).clone()
    with pytest.raises(KeyError), unchanged_gradients([parameter]):
        parameter.grad.add_(1.0)
        raise KeyError
    assert torch.equal(parameter.grad.view(torch.int32), bits)


def test_the_levers_stand_in_docs_in_the_order_in_which_they_are_pulled() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
    section = page.partition("\n## When memory runs out\n")[2].partition("\n## ")[0]
    table = section.partition("| lever | what it frees |")[2].partition("\n\n")[0]
    documented = re.findall(r"^\| `(--adt_\w+)", table, flags=re.M)
    turn = toy_turn(memory="fast")
    turn.latent_pixels = 64
    settings = [lever.setting(turn, toy_latents()) for lever in levers.LEVERS]
    assert [setting.wanted.split()[0] for setting in settings if setting is not None] == documented and all(settings)
