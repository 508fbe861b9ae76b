"""Intervals and tests against cases that are known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.intervals import bootstrap, difference_text, paired_change, sign_flip_test


def test_equal_values_have_no_spread():
    interval = bootstrap([2.0, 2.0, 2.0])
    assert (interval.mean, interval.low, interval.high) == (2.0, 2.0, 2.0)


def test_an_interval_of_many_values_is_about_two_standard_errors_wide_on_both_sides():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    interval = bootstrap(list(values))
    error = values.std() / 20
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_nothing_has_no_interval():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])


def test_a_change_is_taken_pair_by_pair():
    assert paired_change([5.0, 20.0], [10.0, 10.0]).mean == pytest.approx((-50 + 100) / 2)


@pytest.mark.parametrize(
    ("after", "expected"),
    [([1.0, 2.0, 3.0, 4.0, 5.0], 2 / 32), ([9.0, 10.0, 11.0, 12.0, 13.0], 2 / 32), ([5.0, 5.0, 5.0, 7.0, 3.0], 1.0)],
)
def test_the_sign_flip_test_is_exact(after: list[float], expected: float):
    """All five differences on one side: only all and none of the signs flipped are as far from zero."""
    before = [5.0, 6.0, 7.0, 8.0, 9.0] if expected < 1 else [5.0] * 5
    assert sign_flip_test(after, before) == pytest.approx(expected)


def test_too_many_pairs_are_refused():
    with pytest.raises(ValueError, match="at most 16"):
        sign_flip_test([1.0] * 17, [2.0] * 17)


def test_a_difference_of_shares_is_written_with_its_interval_and_p():
    assert difference_text([0.6, 0.7], [0.5, 0.4]) == "+0.200 (+0.100 to +0.300), p = 0.500"
