"""The bench of distance against cost: what is run, how points are put together, and its tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adt_plugin.demo.study import Study
from adt_plugin.demo.variants import ADT, BASE
from benchmarks import DOCUMENTS, curve, miniature, small_sd
from benchmarks.curve import BEDS, Bed, averaged
from benchmarks.host_training import POINTS, point_name
from benchmarks.store import CellStore


def test_the_rivals_are_those_that_were_best_on_validation() -> None:
    found = curve.variants()
    chosen = miniature.published()["finalists"]
    assert all(found[name].name == chosen[name] for name in (miniature.PLAIN, miniature.FROZEN, "ADT"))
    assert found["ADT"] is ADT


def test_what_the_miniatures_benchmark_holds_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_study: Study
) -> None:
    begun: list[tuple[float, str, int]] = []

    def cell(self: miniature.Bench, variant: Any, seed: int, studies: Any) -> None:
        begun.append((self.plan.units, variant.name, seed))

    monkeypatch.setattr(miniature.Bench, "cell", cell)
    monkeypatch.setattr(curve, "open_study", lambda setting: replace(tiny_study, setting=setting))
    curve.run_miniature(tmp_path, 2)
    of_700 = {name for units, name, _ in begun if units == 700}
    assert of_700 == {curve.AS_BEFORE}
    assert len(begun) == 2 * (4 + 1 + 4)


def test_points_of_about_one_cost_are_one_and_the_table_has_their_means() -> None:
    points = [
        ("ADT", (100.0, {"3 @ 10": (4.0, 0.5)})),
        ("ADT", (110.0, {"3 @ 10": (6.0, 0.7)})),
        ("ADT", (220.0, {"3 @ 10": (3.0, 0.9)})),
    ]
    bed = Bed(lambda out, seeds: None, lambda groups: iter(points), "s", 1, "3 @ 10")
    assert [[cost for cost, _ in budget] for budget in averaged(bed, {})["ADT"]] == [[100.0, 110.0], [220.0]]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in curve.table(bed, {}).splitlines()[2:]]
    assert rows == [["ADT", "105", "2", "5.00 (0.60)"], ["ADT", "220", "1", "3.00 (0.90)"]]


def test_cells_of_the_small_sd_are_told_by_their_labels_and_drawn(tmp_path: Path) -> None:
    scores = {point_name(*point): dict.fromkeys(small_sd.FIGURES, 2.0) for point in POINTS}
    recipes = [curve.labelled(recipe).name for _, recipe in curve.LONG]
    assert len(set(recipes)) == len(recipes)
    cells = {f"heldout: {name}, seed 1": {"seconds": 1000 * (i + 1), "scores": scores} for i, name in enumerate(recipes)}
    groups = {"small SD": cells}
    points = list(curve.small_sd_points(groups))
    assert {run for run, _ in points} == {run for run, _ in curve.LONG} | {BASE.name}
    assert len(points) == len(recipes) + len(curve.KNOWN)  # of the benchmark's six seeds the one that is here
    assert small_sd.heldout_runs(small_sd.published()).keys() == curve.KNOWN.keys()
    assert not list(curve.small_sd_points({}))
    curve.draw(groups, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_former_defaults_are_options_that_the_plugin_takes() -> None:
    recipe = next(recipe for run, recipe in curve.LONG if run == curve.AS_BEFORE)
    assert dict(small_sd.options_read(recipe))["weight"] == 1.0
    assert dict(small_sd.options_read(recipe))["cfg_scale"] in ("1", 1)


@pytest.mark.parametrize("bed", BEDS)
def test_the_table_is_what_the_json_says(bed: str) -> None:
    path = DOCUMENTS / "curve.json"
    if not path.exists():
        pytest.skip("nothing is published yet: docs/benchmarks.md says so")
    groups = CellStore(path).results()
    if len(averaged(BEDS[bed], groups)) > 2:
        assert curve.table(BEDS[bed], groups) in (DOCUMENTS.parent / "benchmarks.md").read_text(encoding="utf-8")
