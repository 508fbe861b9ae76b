"""The training loop of the beds, and the pictures of the small Stable Diffusion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.demo.data import load_splits
from benchmarks.beds.pictures import CAPTIONS, STYLES, render
from benchmarks.beds.training import Training, train

PLAN = Training(steps=8, lr=1e-2, lr_end=1e-3, rise=2, fall=0.5, average=0.9, validate_every=2)


def fit(checkpoint: Path, stop_at: int | None = None) -> nn.Module:
    """Fit a line; `stop_at` presses Ctrl-C in a step."""
    torch.manual_seed(0)
    network, calls = nn.Linear(3, 1), []

    def loss(generator: torch.Generator) -> Tensor:
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        x = torch.randn((4, 3), generator=generator)
        return (network(x)[:, 0] - x.sum(1)).square().mean()

    return train(network, loss, PLAN, checkpoint, seed=1, validate=lambda n: {"weight": float(n.weight.detach().mean())})


def test_an_interrupted_training_ends_where_a_straight_one_does(tmp_path: Path):
    straight = fit(tmp_path / "straight" / "line.pt")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "resumed" / "line.pt", stop_at=6)
    resumed = fit(tmp_path / "resumed" / "line.pt")
    assert torch.equal(straight.weight, resumed.weight)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "line.jsonl").read_text().splitlines()]
        for name in ("straight", "resumed")
    ]
    assert [entry["step"] for entry in logs[0]] == [2, 4, 6, 8]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]


def test_a_finished_training_is_not_begun_again(tmp_path: Path):
    first = fit(tmp_path / "line.pt")
    assert torch.equal(first.weight, fit(tmp_path / "line.pt", stop_at=1).weight)


def test_the_rate_rises_falls_and_stays():
    rates = [PLAN.lr_at(step) for step in range(PLAN.steps)]
    assert rates[0] == pytest.approx(PLAN.lr / 2)
    assert rates[1:5] == sorted(rates[1:5], reverse=True)
    assert rates[4:] == pytest.approx([PLAN.lr_end] * 4)


@pytest.mark.parametrize("style", STYLES)
def test_digits_are_rendered_in_range_and_each_in_its_own_way(style: str):
    digits = load_splits().train
    few = type(digits)(digits.images[:6], digits.labels[:6])
    images = render(few, style, torch.Generator().manual_seed(0))
    assert images.shape == (6, 3, 64, 64) and images.min() >= -1 and images.max() <= 1
    assert torch.equal(images, render(few, style, torch.Generator().manual_seed(0)))
    assert not torch.equal(images, render(few, style, torch.Generator().manual_seed(1)))


def test_the_two_styles_are_dark_and_light():
    digits = load_splits().train
    few = type(digits)(digits.images[:6], digits.labels[:6])
    night, paper = (render(few, style, torch.Generator().manual_seed(0)).mean() for style in STYLES)
    assert night < -0.3 and paper > 0.3
    assert len(set(CAPTIONS)) == 10
