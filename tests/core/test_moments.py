"""What optimizers remember of plain steps fits the gradients that come with turns."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.moments import expect_growth, growth

LR = 1e-3


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, sizes: list[float]) -> float:
    """Make a step with a random gradient of each of these sizes; return how far a value has moved on average."""
    before, generator = parameter.detach().clone(), torch.Generator().manual_seed(len(sizes))
    for size in sizes:
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return float((parameter.detach() - before).abs().mean())


def adamw(parameter: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.AdamW([parameter], lr=LR, weight_decay=0.0)


def adafactor(parameter: nn.Parameter) -> torch.optim.Optimizer:
    return Adafactor([parameter], lr=LR, relative_step=False, scale_parameter=False, clip_threshold=1e9)


def eight_bits(parameter: nn.Parameter) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit([parameter], lr=LR, weight_decay=0.0, min_8bit_size=16)


def paged(parameter: nn.Parameter) -> torch.optim.Optimizer:
    """In full precision, under names of its own."""
    import bitsandbytes

    return bitsandbytes.optim.AdamW([parameter], lr=LR, weight_decay=0.0)


needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.parametrize(
    "build",
    [
        adamw,
        adafactor,
        pytest.param(eight_bits, marks=needs_bitsandbytes),
        pytest.param(paged, marks=needs_bitsandbytes),
    ],
)
def test_a_step_is_as_long_as_its_rate_says_when_gradients_have_grown(build: Callable[[nn.Parameter], Any]) -> None:
    """Five times the gradient makes steps several times too long until the average has caught up; forewarned, it does not."""
    moved = {}
    for factor in (1.0, 26.0):
        parameter = nn.Parameter(torch.zeros(64, 64))
        optimizer = build(parameter)
        plain = stepped(optimizer, parameter, [1.0] * 300)
        expect_growth([optimizer], factor)
        moved[factor] = stepped(optimizer, parameter, [26**0.5] * 10) / (plain * (10 / 300) ** 0.5)  # a random walk
    assert moved[1.0] > 1.6 * moved[26.0]
    assert 0.4 < moved[26.0] < 1.3


def test_an_optimizer_without_such_an_average_stays_as_it_is() -> None:
    parameter = nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([parameter], lr=LR, momentum=0.9)
    stepped(optimizer, parameter, [1.0] * 3)
    before = optimizer.state[parameter]["momentum_buffer"].clone()
    expect_growth([optimizer, torch.optim.AdamW([nn.Parameter(torch.zeros(1))])], 26.0)
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], before)


def test_how_much_gradients_grow() -> None:
    assert growth(ADTConfig()) == 26
    assert growth(ADTConfig(every=5)) == 6
    assert growth(ADTConfig(weight=0)) == 1
    assert growth(ADTConfig(weight=20, max_grad_ratio=2.0)) == 5
    assert growth(ADTConfig(balance="none")) == 1
