"""Training images as samples: as many of each class as are asked for, and the mean over draws that share none."""

from __future__ import annotations

import torch

from benchmarks.floor import disjoint_draws, floor

LABELS, ASKED = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 2]), torch.tensor([1, 0, 0])


def test_a_draw_has_as_many_of_each_class_as_are_asked_for_and_shares_none_with_another() -> None:
    draws = disjoint_draws(LABELS, ASKED)
    assert [LABELS[draw].tolist() for draw in draws] == [[0, 0, 1]] * 3
    assert len({int(index) for draw in draws for index in draw}) == 9


def test_figures_are_means_over_the_draws() -> None:
    first, second, third = (int(draw[0]) for draw in disjoint_draws(LABELS, ASKED))
    assert floor(LABELS, ASKED, lambda indices: {"fd": float(indices[0])}) == {"fd": (first + second + third) / 3}
