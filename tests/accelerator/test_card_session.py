"""A session of the host on the card: the whole of a batch, from noising to backward, in every precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from accelerator.device import Traffic, watched
from adt_plugin.host.run import Run
from toyhost import Host

TURN_WAITS = {"turn.py:_all_finite": 1, "report.py:on_the_cpu": 1}
QUIET: dict[str, object] = {"disc_penalty": 0.0, "pictures_every": 0, "start_min": 0.75}
"""Without the penalty, whose noise a device draws for itself, and without pictures, which are fetched when they are due."""


def accelerator_on(device: torch.device, precision: str, monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """An accelerator of this process for a device that accelerate does not know."""
    monkeypatch.undo()  # of an accelerator before this one
    accelerator = Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):  # the second takes the first's device whenever it is asked for
        monkeypatch.setitem(state._shared_state, "device", device)
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", precision)
    accelerator.native_amp = precision != "no"
    if precision == "fp16":
        accelerator.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    return accelerator


class Batches:
    """Batches of a host on one device, from the same draws everywhere."""

    def __init__(self, host: Host) -> None:
        self.host = host
        torch.manual_seed(7)
        host.load()
        host.prepare()

    def run(self, count: int) -> tuple[Tensor, Traffic]:
        """The last one's gradient, unscaled and on the CPU, and the traffic of its backward pass, in which its turn comes."""
        host = self.host
        for seed in range(count):
            torch.manual_seed(seed)
            host.unet.zero_grad()
            host.noise()
            loss = host.forward()
            with watched() as traffic:
                host.accelerator.backward(loss)
        scale = host.accelerator.scaler.get_scale() if host.accelerator.scaler else 1.0
        return host.gradient().cpu() / scale, traffic

    def settle(self) -> None:
        """Go past the first turns, in which the heads collect their statistics."""
        for standardize in self.host.session.run.turn.discriminator.standardizers:
            standardize.seen = standardize.updates


@pytest.fixture
def batches_on(tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    def batches_on(device: torch.device, precision: str = "no", **options: object) -> Batches:
        accelerator = accelerator_on(device, precision, monkeypatch)
        return Batches(Host(tmp_path, tiny_dino, accelerator=accelerator, **QUIET | options))

    return batches_on


WAYS: dict[str, dict[str, object]] = {
    "as it is": {},
    "one pass": {"memory": "joined"},
    "off the card between turns": {"offload": True},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_session_computes_on_the_card_what_it_computes_on_the_cpu(
    card: torch.device, batches_on, options: dict[str, object]  # noqa: ANN001
) -> None:  # fmt: skip
    expected, _ = batches_on(torch.device("cpu"), **options).run(2)
    found, _ = batches_on(card, **options).run(2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_a_batch_waits_for_one_decision_and_one_report_and_one_without_a_turn_for_nothing(
    card: torch.device, batches_on  # noqa: ANN001
) -> None:  # fmt: skip
    batches = batches_on(card, every=2)
    batches.run(1)
    batches.settle()
    batches.host.session.optimizer_steps = 2
    (_, with_turn), (_, without) = batches.run(1), batches.run(1)
    assert batches.host.session.run.turn.turns == 2
    assert with_turn.waits == TURN_WAITS and set(with_turn.from_card) == {"report.py:on_the_cpu"}
    assert not without.waits and not without.copies


def test_a_loss_scaler_is_waited_for_once_more(card: torch.device, batches_on) -> None:  # noqa: ANN001
    batches = batches_on(card, "fp16")
    batches.host.accelerator.prepare(torch.optim.SGD(batches.host.unet.parameters(), lr=0.1))
    batches.run(1)
    batches.settle()
    assert batches.run(1)[1].waits == TURN_WAITS | {"distributed.py:any_process": 1}


@pytest.mark.parametrize(("precision", "near"), [("fp16", 0.02), ("bf16", 0.1)])
def test_mixed_precision_is_near_full_precision(
    card: torch.device, batches_on, precision: str, near: float  # noqa: ANN001
) -> None:  # fmt: skip
    exact, _ = batches_on(card).run(1)
    batches = batches_on(card, precision)
    found, traffic = batches.run(1)
    assert batches.host.session.run.turn.turns == 1 and traffic.waits
    assert 0 < float((found - exact).norm() / exact.norm()) < near


def test_pictures_of_a_session_on_the_card(card: torch.device, batches_on, tmp_path: Path) -> None:  # noqa: ANN001
    batches_on(card, pictures_every=1, max_bad_turns=1).run(2)
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"x-adt-000001.png", "x-adt-000002.png", "x-adt-progress.png"}


@pytest.mark.parametrize("options", [{}, {"memory": "joined"}, {"memory": "fast"}], ids=["as it is", "one pass", "kept graphs"])
def test_a_rehearsal_on_the_card_leaves_no_trace_there(
    card: torch.device, batches_on, options: dict[str, object]  # noqa: ANN001
) -> None:  # fmt: skip
    found = []
    for limited in (False, True):
        batches = batches_on(card, **options)
        run = rehearsing(batches, limited)
        found.append(batches.run(2)[0])
        assert list(run.headroom.rehearsed.values()) == [4 * 8 * 8] * (2 if limited else 0)
        assert run.turn.turns == 2
    assert torch.equal(*found)


def rehearsing(batches: Batches, limited: bool) -> Run:
    """Say of the card that its memory is limited, or is not; before the first batch is there."""
    host = batches.host
    host.noise()
    host.session.run.headroom.limited = lambda device: limited
    return host.session.run
