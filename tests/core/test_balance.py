"""The weight of the adversarial gradient against the diffusion gradient."""

from __future__ import annotations

import pytest
import torch

from adt_plugin.core.diffusion.balance import EMA, KNOWN, GradientBalance
from adt_plugin.core.schedule import MEASURED


def balance(mode: str, weight: float = 0.5, max_ratio: float = 100.0, diffusion: float | None = 2.0) -> GradientBalance:
    result = GradientBalance(mode, weight, max_ratio)
    if diffusion is not None:
        result.diffusion.update(torch.tensor(diffusion))
    return result


def applied(target: GradientBalance, norm: float) -> float:
    return float(target.scale(torch.tensor(norm)) * norm)


def measured(target: GradientBalance, norms: tuple[float, ...]) -> GradientBalance:
    """A balance that has learned from these norms, as at the end of a warm-up."""
    for norm in norms:
        target.measure(torch.tensor(norm))
    return target


def test_the_running_mean_is_unbiased_from_the_first_value_on() -> None:
    mean = EMA(0.9)
    assert mean.value is None
    for _ in range(3):
        mean.update(torch.tensor(4.0))
        assert float(mean.value) == pytest.approx(4.0)


def test_the_running_mean_skips_what_is_not_finite() -> None:
    mean = EMA(0.9)
    for value in (1.0, float("nan"), float("inf")):
        mean.update(torch.tensor(value))
    assert float(mean.value) == pytest.approx(1.0)


def test_a_first_value_that_is_not_finite_leaves_the_mean_at_zero() -> None:
    mean = EMA(0.9)
    mean.update(torch.tensor(float("inf")))
    assert float(mean.value) == 0.0
    mean.update(torch.tensor(2.0))
    assert float(mean.value) == pytest.approx(2.0)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e3])
def test_ratio_makes_every_turn_the_same_share_of_the_diffusion_gradient(norm: float) -> None:
    assert applied(balance("ratio"), norm) == pytest.approx(0.5 * 2.0)


def test_cap_keeps_small_gradients_small_and_bounds_large_ones() -> None:
    target = balance("cap")
    for _ in range(50):
        assert applied(target, 10.0) == pytest.approx(1.0)
    assert applied(target, 1.0) == pytest.approx(0.1, rel=0.1)
    assert applied(target, 1e4) == pytest.approx(1.0)


def test_cap_knows_the_average_from_what_was_measured_before() -> None:
    """A start next to the image gives a small gradient: the first turn of a run must not raise it to the diffusion loss's."""
    target = measured(balance("cap"), (10.0, 12.0, 8.0, 10.0))
    assert applied(target, 0.7) == pytest.approx(0.08, rel=0.2)


def test_cap_makes_no_gradient_larger_while_it_knows_no_average() -> None:
    """Without a warm-up the first start may lie next to the image: its small norm is not yet what is usual."""
    target = balance("cap", weight=5.0)
    for _ in range(KNOWN):
        assert applied(target, 0.07) == pytest.approx(0.07)
    assert applied(balance("cap", weight=5.0), 300.0) == pytest.approx(5.0 * 2.0)  # bounded as ever
    assert applied(balance("ratio", weight=5.0), 0.07) == pytest.approx(5.0 * 2.0)


def test_cap_gives_the_average_turn_its_norm_from_the_fifth_on() -> None:
    target = balance("cap")
    assert [round(applied(target, 0.1), 4) for _ in range(KNOWN + 1)] == [0.1] * KNOWN + [1.0]


def test_cap_counts_no_norm_that_is_not_finite() -> None:
    target = measured(balance("cap"), (0.1,) * (KNOWN - 1) + (float("nan"),) * 3)
    assert applied(target, 0.1) == pytest.approx(0.1)
    assert applied(target, 0.1) == pytest.approx(1.0)


def test_after_a_warm_up_cap_is_the_plain_formula_to_the_bit() -> None:
    """The defaults have one, whose last turns measure more than is needed."""
    assert MEASURED >= KNOWN
    target, twin = (measured(balance("cap"), tuple(torch.rand(MEASURED, generator=seeded()).tolist())) for _ in range(2))
    for norm in torch.rand(20, generator=seeded()):
        twin.adversarial.update(norm)
        expected = 0.5 * twin.diffusion.value / torch.maximum(norm, twin.adversarial.value)
        assert torch.equal(target.scale(norm), expected)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_none_is_the_plain_weight() -> None:
    assert float(balance("none", weight=0.3).scale(torch.tensor(7.0))) == pytest.approx(0.3)
    assert float(balance("none", weight=0.3, diffusion=None).scale(torch.tensor(7.0))) == pytest.approx(0.3)


@pytest.mark.parametrize("mode", ["ratio", "cap", "none"])
def test_every_mode_is_bounded(mode: str) -> None:
    assert applied(balance(mode, weight=50.0, max_ratio=3.0), 10.0) == pytest.approx(3.0 * 2.0)


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["ratio", "cap", "none"])
def test_a_gradient_that_is_not_finite_is_dropped_and_not_remembered(mode: str, norm: float) -> None:
    target = balance(mode)
    assert float(target.scale(torch.tensor(norm))) == 0.0
    assert float(target.scale(torch.tensor(1.0))) > 0.0


def test_a_vanished_gradient_is_no_division_by_zero() -> None:
    assert torch.isfinite(balance("ratio").scale(torch.tensor(0.0)))


def test_without_a_diffusion_gradient_the_way_out_is_named() -> None:
    with pytest.raises(RuntimeError, match="watch"):
        balance("ratio", diffusion=None).scale(torch.tensor(1.0))
