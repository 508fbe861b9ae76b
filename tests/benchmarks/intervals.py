"""What a few paired runs say: bootstrap intervals of means and of paired changes, and an exact test of the sign of a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron 1979); one value alone has no spread.

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    found = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(found), size=(RESAMPLES, len(found)))
    low, high = np.percentile(found[draws].mean(axis=1), [2.5, 97.5])
    return Interval(float(found.mean()), float(low), float(high))


def paired_change(after: Sequence[float], before: Sequence[float]) -> Interval:
    """Return the mean relative change of pairs in percent, -20 for a fifth less, with its bootstrap interval."""
    return bootstrap([100 * (a / b - 1) for a, b in zip(after, before, strict=True)])


def interval_text(values: Sequence[float], form: str = ".3g") -> str:
    """Format a mean with its interval; one value alone stands without."""
    found = bootstrap(values)
    mean, low, high = (format(value, form) for value in (found.mean, found.low, found.high))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def change_text(after: Sequence[float], before: Sequence[float]) -> str:
    """Format the relative change of pairs with its interval and the p-value of their difference."""
    change = paired_change(after, before)
    return f"{change.mean:+.0f} % ({change.low:+.0f} to {change.high:+.0f}), p = {sign_flip_test(after, before):.3f}"


def difference_text(after: Sequence[float], before: Sequence[float]) -> str:
    """Format the difference of pairs, of a share, as `change_text` does a relative one."""
    change = bootstrap([a - b for a, b in zip(after, before, strict=True)])
    return f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f}), p = {sign_flip_test(after, before):.3f}"


def sign_flip_test(after: Sequence[float], before: Sequence[float]) -> float:
    """Return the two-sided p-value of the mean paired difference, exact over all flips of signs (Fisher 1935).

    With n pairs it is never below 2 / 2^n: 0.0625 for five, 0.002 for ten. Raises ValueError for more than 16 pairs.
    """
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    if len(differences) > 16:
        raise ValueError("the exact test is for at most 16 pairs")
    seen = abs(differences.sum())
    sums = [abs(float(np.dot(signs, differences))) for signs in product((1, -1), repeat=len(differences))]
    return sum(value >= seen - 1e-12 for value in sums) / len(sums)
