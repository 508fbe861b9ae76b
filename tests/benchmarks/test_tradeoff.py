"""Distance beside the counted cost of a Stable Diffusion run."""

from __future__ import annotations

from pathlib import Path

import pytest

from adt_plugin.cost.formula import Parts
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.metrics import Scores
from benchmarks import tradeoff
from benchmarks.ablations import BASE, COST_CANDIDATES, cost_candidate

PARTS = Parts(forward=1.0, step=3.0, decode_real=0.5, decode_generated=2.0, judge=0.25)


@pytest.fixture(autouse=True)
def known_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Made-up parts; returns the crops for which they were asked."""
    asked: list[int] = []
    monkeypatch.setattr(tradeoff, "_parts", lambda crop: asked.append(crop) or PARTS)
    return asked


def cells_of(*variants: object) -> dict[str, list[Cell]]:
    """Two seeds each."""
    scores = Scores(fd=10.0, pixel_fd=1.0, precision=0.9, recall=0.8)
    return {
        v.name: [Cell(v.name, seed, 1.0, 300, 1, {"ddim": {n: scores for n in (5, 10, 20)}}) for seed in (0, 1)]
        for v in variants
    }


def test_half_of_the_miniatures_side_is_half_of_stable_diffusions(known_parts: list[int]) -> None:
    tradeoff.relative_cost(cost_candidate(2, 5, 2, decode_crop=8).plan.adt)
    assert known_parts == [256]


def test_less_work_costs_less() -> None:
    cost = {
        (e, m, k): tradeoff.relative_cost(cost_candidate(e, m, k).plan.adt) for e in (1, 2) for m in (5, 10) for k in (1, 2)
    }
    assert cost[2, 5, 1] < cost[2, 5, 2] < cost[1, 5, 2] < cost[1, 10, 2]


def test_the_table_is_sorted_by_cost_and_has_what_is_finished() -> None:
    variants = [cost_candidate(1, 10, 2), cost_candidate(4, 5, 1), BASE, cost_candidate(2, 5, 2)]
    rows = tradeoff.tradeoff_table(variants, cells_of(*variants[:3])).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [BASE.name, "every 4, m = 5, K = 1", "every 1, m = 10, K = 2"]
    assert rows[0].split("|")[2].strip() == "1.00 x"


def test_the_picture_has_a_curve_per_amount_of_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[object, dict[str, list[list[tuple[float, float]]]]]] = []
    monkeypatch.setattr(tradeoff.pictures, "curves", lambda path, panels: drawn.append(panels))
    variants = [cost_candidate(every, 5, k) for every in (1, 2) for k in (1, 2)]
    tradeoff.draw_tradeoff(tmp_path / "x.png", variants, cells_of(*variants))
    panel = next(iter(drawn[0].values()))
    assert list(panel) == ["m = 5, K = 1", "m = 5, K = 2"]
    assert [len(seeds) for seeds in panel.values()] == [2, 2]
    assert all(len(curve) == 2 and curve[0][0] > curve[1][0] for seeds in panel.values() for curve in seeds)


def test_the_candidates_surround_the_defaults() -> None:
    names = {variant.name for variant in COST_CANDIDATES}
    assert {"every 1, m = 5, K = 2", "every 2, m = 5, K = 2", "every 4, m = 5, K = 2", "every 2, m = 5, K = 2, crop 8"} <= names
