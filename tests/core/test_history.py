"""The last turns' features, and the head steps that learn from them."""

from __future__ import annotations

import torch
from torch import Tensor

from adt_plugin.core.discriminator import PairFeatures
from adt_plugin.core.discriminator.history import FeatureHistory, packed
from adt_plugin.core.run.state import capture, restore
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn


def features(value: float) -> PairFeatures:
    return PairFeatures(*([torch.full((2, 3, 4, 4), value + i), torch.full((2, 5, 2, 2), -value)] for i in range(3)))


def keep(history: FeatureHistory, value: float) -> None:
    history.add(packed(features(value)), features(value))


def test_the_oldest_turn_is_forgotten() -> None:
    """Also while a turn draws that is not in yet: what is drawn is what is kept once it is in."""
    history = FeatureHistory(turns=3)
    for value in range(5):
        keep(history, float(value))
    generator = torch.Generator().manual_seed(0)
    drawn = {float(history.draw(generator, features(9.0)).gen[0].mean()) for _ in range(50)}
    assert len(history) == 3 and drawn == {3.0, 4.0, 9.0}


def test_a_history_of_one_turn_draws_the_latest_alone() -> None:
    history = FeatureHistory(turns=1)
    keep(history, 1.0)
    assert {float(history.draw(torch.Generator(), features(9.0)).gen[0].mean()) for _ in range(9)} == {9.0}


def test_what_is_drawn_is_what_was_kept_in_the_precision_that_is_asked_for() -> None:
    """The latest turn's features are rounded like those that are kept: 257 is no number of bfloat16."""
    history, generator = FeatureHistory(), torch.Generator().manual_seed(0)
    keep(history, 1.5)
    means = set()
    for _ in range(20):
        drawn = history.draw(generator, features(257.0))
        means.add(float(drawn.gen[0].mean()))
        expected = features(1.5 if float(drawn.gen[0].mean()) == 1.5 else 257.0)
        for name in ("gen", "real", "real_again"):
            for found, given in zip(getattr(drawn, name), getattr(expected, name), strict=True):
                assert found.dtype == torch.float32 and torch.equal(found, given.bfloat16().float())
    assert means == {1.5, 256.0}
    assert all(block.dtype == torch.bfloat16 and block.device.type == "cpu" for block in history.kept[0].gen)


def test_a_history_survives_its_state() -> None:
    history, other = FeatureHistory(), FeatureHistory()
    for value in range(10):  # more than nine: "10" does not come before "2"
        history.kept = type(history.kept)(history.kept, maxlen=12)
        keep(history, float(value))
    other.kept = type(other.kept)(maxlen=12)
    other.load_state_dict(history.state_dict())
    assert [float(f.gen[0].mean()) for f in other.kept] == [float(v) for v in range(10)]
    other.load_state_dict({})
    assert len(other) == 0


def heads_after(turns: int, disc_steps: int) -> Tensor:
    turn, net = toy_turn(disc_steps=disc_steps), ToyDenoiser()
    for _ in range(turns):
        diffusion_backward(turn, net, toy_latents())
        turn(net, toy_latents())
    return torch.cat([p.detach().flatten() for p in turn.discriminator.parameters()])


def test_every_further_step_moves_the_heads() -> None:
    start = heads_after(0, 1)
    distances = [float((heads_after(1, steps) - start).abs().mean()) for steps in (1, 2, 4)]
    assert distances[0] < distances[1] < distances[2]


def test_a_resumed_run_draws_from_the_same_history() -> None:
    straight, net = toy_turn(disc_steps=3), ToyDenoiser()
    for _ in range(4):
        diffusion_backward(straight, net, toy_latents())
        straight(net, toy_latents())
    resumed = toy_turn(disc_steps=3)
    state = capture(straight, straight.config)
    restore(resumed, state)
    reports = []
    for turn in (straight, resumed):
        diffusion_backward(turn, net, toy_latents())
        reports.append(turn(net, toy_latents()))
    assert reports[0].loss_d == reports[1].loss_d
    for mine, its in zip(straight.discriminator.parameters(), resumed.discriminator.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_dropped_turn_leaves_heads_and_history_alone() -> None:
    turn, net = toy_turn(disc_steps=3), ToyDenoiser()
    diffusion_backward(turn, net, toy_latents())
    turn(net, toy_latents())
    before = [p.detach().clone() for p in turn.discriminator.parameters()]
    turn.decode = lambda latents: latents[:, :3] * float("nan")
    diffusion_backward(turn, net, toy_latents())
    assert turn(net, toy_latents()).skipped
    assert len(turn.history) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, turn.discriminator.parameters(), strict=True))
