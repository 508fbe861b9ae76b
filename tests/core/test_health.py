"""Turns that are not finite, and games that one side has won."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.report import TurnReport
from adt_plugin.core.run import health
from adt_plugin.core.run.health import BadTurnsError, Health
from adt_plugin.core.schedule import TurnSchedule
from adt_plugin.core.turn import AdversarialTurn
from toys import ToyDenoiser, diffusion_backward, toy_decode, toy_latents, toy_turn


def turns(turn: AdversarialTurn, net: ToyDenoiser, count: int = 1) -> list[TurnReport]:
    reports = []
    for _ in range(count):
        diffusion_backward(turn, net, toy_latents())
        reports.append(turn(net, toy_latents()))
    return reports


class FaultyDecode:
    """Decodes; from the call numbered `first` to the one before `last`, to `value` everywhere."""

    def __init__(self, first: int, last: int, value: float = float("nan")) -> None:
        self.calls, self.first, self.last, self.value = 0, first, last, value

    def __call__(self, latents: Tensor) -> Tensor:
        self.calls += 1
        images = toy_decode(latents)
        return images * self.value if self.first <= self.calls < self.last else images


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [1, 2, 5, 6])
def test_a_bad_image_is_dropped_and_the_next_turns_are_sound(first: int, value: float) -> None:
    """Generated (odd calls) or real (even calls) images, in the first turn or later; nothing is poisoned."""
    turn, net = toy_turn(), ToyDenoiser()
    turn.decode = FaultyDecode(first, first + 1, value)
    reports = turns(turn, net, 5)
    bad = (first - 1) // 2
    assert [report.skipped for report in reports] == [i == bad for i in range(5)]
    assert all(tensor.isfinite().all() for tensor in turn.discriminator.state_dict().values())
    assert net.gradients().isfinite().all()
    assert reports[-1].grad_norm > 0


def nan_gradient(turn: AdversarialTurn) -> None:
    """The images are sound, what comes back through the decoder is not: the generator's side alone."""

    def decode(latents: Tensor) -> Tensor:
        images = toy_decode(latents)
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient * float("nan"))
        return images

    turn.decode = decode


def nan_real_images(turn: AdversarialTurn) -> None:
    """A unary score of generated images never sees them: the discriminator's side alone."""
    turn.decode = lambda latents: toy_decode(latents) * (float("nan") if is_real(latents) else 1.0)


def is_real(latents: Tensor) -> bool:
    """Whether these are the training images' own."""
    return torch.equal(latents, toy_latents())


def infinite_scores(turn: AdversarialTurn) -> None:
    """Of both sides."""
    compare = turn.discriminator.score.compare
    turn.discriminator.score.compare = lambda first, second: compare(first, second) * float("inf")  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("fault", "kind"), [(nan_gradient, "siamese"), (nan_real_images, "unary"), (infinite_scores, "siamese")]
)
def test_a_fault_on_one_side_drops_the_turn_on_both(fault: Callable[[AdversarialTurn], None], kind: str) -> None:
    turn, net = toy_turn(disc_type=kind), ToyDenoiser()
    fault(turn)
    diffusion_backward(turn, net, toy_latents())
    alone = net.gradients().clone()
    heads = [parameter.clone() for parameter in turn.discriminator.score.heads.parameters()]
    report, calls = turn(net, toy_latents()), net.calls
    assert report.skipped and report.grad_norm == 0.0
    assert calls == 1 + report.start  # the host's own and the unroll: nothing was replayed
    assert torch.equal(net.gradients(), alone)
    assert all(torch.equal(a, b) for a, b in zip(heads, turn.discriminator.score.heads.parameters(), strict=True))


class DivergingDenoiser(ToyDenoiser):
    """Returns NaN in the unroll from the turn numbered `bad` on."""

    def __init__(self, turn: AdversarialTurn, bad: int) -> None:
        super().__init__()
        object.__setattr__(self, "turn", turn)
        self.bad = bad

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output = super().forward(x, t)
        return output * float("nan") if self.turn.turns + 1 >= self.bad and not torch.is_grad_enabled() else output


def test_a_run_ends_after_so_many_bad_turns_in_a_row_with_a_diagnosis(caplog: pytest.LogCaptureFixture) -> None:
    turn = toy_turn()
    net, watch = DivergingDenoiser(turn, bad=3), Health(max_bad_turns=3)
    with pytest.raises(BadTurnsError, match="3 turns in a row were not finite, first in generated images: .*--adt_weight"):
        for _ in range(10):
            watch.examine(turns(turn, net)[0])
    assert turn.turns == 5 and watch.bad_turns == 3
    assert net.gradients().isfinite().all()
    assert "turn 3 was not finite and has been dropped (1 so far)." in caplog.text


def test_bad_turns_that_are_not_in_a_row_or_not_limited_let_the_run_go_on() -> None:
    for limit, spoilt in ((2, [1, 3, 5]), (0, [1, 2, 3, 4, 5])):
        turn, net, watch = toy_turn(), ToyDenoiser(), Health(limit)
        for number in range(1, 7):
            turn.decode = FaultyDecode(1, 3) if number in spoilt else toy_decode
            watch.examine(turns(turn, net)[0])
        assert watch.bad_turns == len(spoilt)


def report(**values: float) -> TurnReport:
    sound = turns(toy_turn(), ToyDenoiser())[0]
    for name, value in values.items():
        setattr(sound, name, value)
    return sound


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"loss_d": 0.0, "score_real": 3.0, "score_gen": -3.0}, "lower --adt_disc_lr"),
        ({"loss_d": 3.0, "score_real": -1.0, "score_gen": 1.0}, "--adt_disc_lr or --adt_warmup"),
    ],
)
def test_a_one_sided_game_is_said_once(values: dict[str, float], flag: str, caplog: pytest.LogCaptureFixture) -> None:
    watch, one_sided, even = Health(0), report(**values), report(loss_d=1.0, score_real=1.0, score_gen=0.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(health.PATIENCE - 1):
            watch.examine(one_sided)
        watch.examine(even)
        assert not caplog.records
        for _ in range(3 * health.PATIENCE):
            watch.examine(one_sided)
    assert len(caplog.records) == 1 and flag in caplog.text


def test_a_warmup_is_no_lost_game(caplog: pytest.LogCaptureFixture) -> None:
    watch, warming = Health(0), report(loss_d=3.0, score_real=-1.0, score_gen=1.0, warmup=True)
    for _ in range(2 * health.PATIENCE):
        watch.examine(warming)
    assert not caplog.records


def test_a_discriminator_that_really_has_won_is_said(caplog: pytest.LogCaptureFixture) -> None:
    turn, net, watch = toy_turn(weight=0.0, disc_lr=0.01, disc_penalty=0.0), ToyDenoiser(), Health(0)
    turn.decode = lambda latents: toy_decode(latents) if is_real(latents) else torch.ones_like(toy_decode(latents))
    with caplog.at_level(logging.WARNING):
        for report in turns(turn, net, 3 * health.PATIENCE):
            watch.examine(report)
    said = [record.getMessage() for record in caplog.records]
    assert sum("the discriminator has told every pair apart for 50 turns" in message for message in said) == 1


def test_a_generator_that_makes_the_same_image_of_everything_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """The real images differ, turn by turn; the game itself stays finite."""
    turn, net, watch = toy_turn(weight=0.0), ToyDenoiser(), Health(0)
    for standardize in turn.discriminator.standardizers:
        standardize.updates = 1
    turn.discriminator.augment = nn.Identity()  # type: ignore[assignment]
    real = [False]

    def decode(latents: Tensor) -> Tensor:
        real[0] = not real[0]  # a turn decodes the real images first
        return toy_decode(latents) if real[0] else torch.zeros_like(toy_decode(latents))

    turn.decode = decode
    with caplog.at_level(logging.WARNING):
        for number in range(health.PATIENCE + 40):
            watch.examine(turn(net, toy_latents(seed=number)))
    assert sum("varied less than half as much as real ones for 50 turns" in record.message for record in caplog.records) == 1


def test_a_short_run_that_collapses_is_warned_before_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """500 steps with the defaults at batch 1: 40 turns of warm-up and 40 after it, in which every image is the same."""
    schedule = TurnSchedule.from_config(ADTConfig(), 500)
    planned = schedule.count(500)
    assert (planned.warmup, planned.adversarial) == (40, 40)
    turn, net, first = toy_turn(weight=0.0, warmup=planned.warmup), ToyDenoiser(), [True]
    turn.discriminator.augment = nn.Identity()  # type: ignore[assignment]
    watch = Health(0, patience=health.patience_for(planned.adversarial))

    def decode(latents: Tensor) -> Tensor:
        first[0] = not first[0]  # a turn decodes the real images first
        collapsed = first[0] and turn.turns >= planned.warmup
        return torch.zeros_like(toy_decode(latents)) if collapsed else toy_decode(latents)

    turn.decode = decode
    with caplog.at_level(logging.WARNING):
        for number in range(planned.total):
            watch.examine(turn(net, toy_latents(seed=number)[:1]))
    said = [record.getMessage() for record in caplog.records]
    assert sum("varied less than half as much as real ones for 10 turns" in message for message in said) == 1


@pytest.mark.parametrize(("turns", "patience"), [(0, 10), (40, 10), (160, 40), (200, 50), (5000, 50)])
def test_patience_is_a_quarter_of_the_adversarial_turns_within_bounds(turns: int, patience: int) -> None:
    assert health.patience_for(turns) == patience


def far(drift: health.Drift, distance: float, turns: int) -> float:
    for number in range(turns):
        drift.add(2 + number % 2, distance * (1 + number % 2))
    return drift.level


def test_the_drift_is_how_many_times_as_far_each_start_has_come() -> None:
    drift = health.Drift()
    assert far(drift, 1.0, 2 * health.FIRST) == 1.0
    assert far(drift, 1.5, 200) == pytest.approx(1.5, abs=0.01)


def test_images_that_move_away_for_long_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = Health(0)
    near, farther = report(distance=1.0, start=2, spread=1.0), report(distance=1.5, start=2, spread=1.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            watch.examine(near)
        assert not caplog.records
        for _ in range(3 * health.PATIENCE):
            watch.examine(farther)
    assert len(caplog.records) == 1 and "a fifth farther from real ones than at first for 50 turns" in caplog.text
