"""Random state: what is seeded, and what is given back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from adt_plugin.core.rng import draw_seed, normal_like, preserved_rng, seed_everything


def draws() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.rand())]


def test_a_seed_fixes_the_draws_of_torch_random_and_numpy() -> None:
    with preserved_rng():
        seed_everything(5)
        first = draws()
        seed_everything(6)
        second = draws()
        seed_everything(5)
        assert draws() == first
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_any_drawn_seed_can_be_used() -> None:
    with preserved_rng():
        for seed in (0, 2**31 - 1, 2**32 + 3):
            seed_everything(seed)


def test_the_state_is_given_back_after_an_error_too() -> None:
    with preserved_rng():
        seed_everything(1)
        expected = draws()
        seed_everything(1)
        with pytest.raises(RuntimeError), preserved_rng():
            draws()
            raise RuntimeError
        assert draws() == expected


def test_seeds_come_from_the_given_generator() -> None:
    seeds = [draw_seed(torch.Generator().manual_seed(3)) for _ in range(2)]
    assert seeds[0] == seeds[1] != draw_seed(torch.Generator().manual_seed(4))
    assert 0 <= seeds[0] < 2**31


def test_normal_numbers_on_the_cpu_are_the_generators_own() -> None:
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
    found = normal_like(torch.zeros(2, 3, dtype=torch.float64), torch.Generator().manual_seed(5))
    assert found.dtype == torch.float64 and torch.equal(found.float(), expected)
