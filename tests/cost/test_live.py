"""Bytes of live tensors."""

from __future__ import annotations

import torch

from adt_plugin.cost.live import LiveBytes


def test_a_storage_counts_once_from_its_making_to_its_end() -> None:
    with LiveBytes() as live:
        tensor = torch.zeros(100)
        view = tensor.view(10, 10)
        assert live.now == 400
        del tensor
        assert live.now == 400  # the view holds it
        del view
        assert live.now == 0 and live.peak == 400


def test_what_was_there_before_counts_where_it_is_named() -> None:
    weight = torch.zeros(100)
    with LiveBytes([weight]) as live:
        weight.add_(1)
        assert live.now == 400
        assert live.peak_of(lambda: weight * 2) == 800
        assert live.now == 400


def test_a_part_has_a_peak_of_its_own() -> None:
    with LiveBytes() as live:
        assert live.peak_of(lambda: torch.zeros(100)) == 400
        assert live.peak_of(lambda: torch.zeros(10)) == 40
