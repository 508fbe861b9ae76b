"""The numbers that say how like generated windows are to real ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adt_plugin.core.discriminator.heads import Standardize
from adt_plugin.core.discriminator.likeness import WindowSets, feature_distance, kernel, pooled
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn


def vectors(count: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + shift


def filled(gen: Tensor, real: Tensor, batch: int = 4, windows: int = 64) -> WindowSets:
    sets = WindowSets(windows)
    for g, r in zip(gen.split(batch), real.split(batch), strict=True):
        sets.add(g, r)
    return sets


def kid_by_hand(gen: Tensor, real: Tensor) -> float:
    """Lemma 6 of Gretton et al. 2012, term by term."""
    count, total = len(gen), 0.0
    for i in range(count):
        for j in range(count):
            if i != j:
                pairs = ((gen[i], gen[j], 1), (real[i], real[j], 1), (gen[i], real[j], -1), (gen[j], real[i], -1))
                total += sum(sign * float((a @ b / len(a) + 1) ** 3) for a, b, sign in pairs)
    return total / (count * (count - 1))


@pytest.mark.parametrize(("count", "batch"), [(40, 4), (100, 3), (70, 70)])
def test_the_running_distance_is_that_of_the_last_windows_term_by_term(count: int, batch: int) -> None:
    gen, real = vectors(count, 1, shift=0.3), vectors(count, 2)
    sets, kept = filled(gen, real, batch), min(count, 64)
    assert len(sets) == kept
    assert sets.kid == pytest.approx(kid_by_hand(gen[-kept:].double(), real[-kept:].double()), rel=1e-3)
    assert sets.spread == pytest.approx(float(gen[-kept:].var(0).sum() / real[-kept:].var(0).sum()), rel=1e-4)


def test_equal_distributions_are_near_zero_and_shifted_ones_are_not() -> None:
    def mean_kid(shift: float) -> float:
        estimates = [filled(vectors(64, 10 + s, shift), vectors(64, 100 + s)).kid for s in range(30)]
        return sum(estimates) / len(estimates)

    assert abs(mean_kid(0.0)) < 0.1 and mean_kid(1.0) > 5 * abs(mean_kid(0.0)) + 1.0


def test_pairs_that_resemble_each_other_do_not_make_the_estimate_smaller() -> None:
    """A generated window begins as the real one beside it: identical pairs, compared with themselves, would be negative."""
    same = vectors(64, 1)
    assert filled(same, same).kid == pytest.approx(0.0, abs=1e-5)


def test_images_that_are_all_alike_have_no_spread() -> None:
    sets = filled(vectors(64, 1, scale=0.1), vectors(64, 2))
    assert sets.spread == pytest.approx(0.01, rel=0.2)


def test_few_windows_say_nothing() -> None:
    sets = filled(vectors(28, 1), vectors(28, 2))
    assert math.isnan(sets.kid) and math.isnan(sets.spread)


def test_the_kernel_is_kids() -> None:
    assert kernel(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist() == [[8.0, 1.0]]


def test_vectors_are_standardised_block_by_block_and_averaged_over_positions() -> None:
    standardizers = [Standardize(2, updates=1), Standardize(1, updates=1)]
    standardizers[0].mean.copy_(torch.tensor([1.0, 2.0]))
    standardizers[0].square.copy_(torch.tensor([1.0 + 4.0, 4.0 + 1.0]))  # deviations 2 and 1
    first = torch.tensor([[[[1.0, 5.0]], [[2.0, 4.0]]]])
    result = pooled([first, torch.ones(1, 1, 3, 3)], standardizers)
    torch.testing.assert_close(result, torch.tensor([[1.0, 1.0, 1.0]]))


def test_the_distance_is_a_root_mean_square_per_pair() -> None:
    gen, real = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert float(feature_distance(gen, real)) == pytest.approx((12.5**0.5 + 0.0) / 2)


def test_a_turn_reports_them_and_no_draw_is_made_for_them() -> None:
    turn, net, reports = toy_turn(), ToyDenoiser(), []
    for standardize in turn.discriminator.standardizers:
        standardize.updates = 2
    for _ in range(20):
        diffusion_backward(turn, net, toy_latents())
        reports.append(turn(net, toy_latents()))
    assert all(report.distance > 0 for report in reports)
    assert math.isnan(reports[15].kid)
    assert math.isfinite(reports[-1].kid) and reports[-1].spread > 0
    assert len(turn.windows) == 2 * 19  # the first turn came before the statistics were complete
