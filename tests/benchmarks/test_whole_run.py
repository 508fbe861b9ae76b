"""The bench of whole runs: its command, its figures, and its table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import DOCUMENTS, whole_run
from benchmarks.host_lora import POINTS, point_name
from benchmarks.small_sd import FIGURES
from benchmarks.store import CellStore


def cell(value: float) -> dict[str, Any]:
    """A run whose figures all have this value."""
    return {"seconds": 100 * value, "scores": {point_name(*point): dict.fromkeys(FIGURES, value) for point in POINTS}}


def test_runs_are_told_by_their_labels() -> None:
    plain, _, adt = (recipe.name for recipe in whole_run.RUNS)
    found = whole_run.runs_of(
        {f"heldout: {adt}, seed 2": cell(3), f"heldout: {adt}, seed 1": cell(1), f"heldout: {plain}, seed 1": cell(5)}
    )
    assert [[each["seconds"] for each in cells] for cells in found.values()] == [[500], [], [100, 300]]
    rows = whole_run.summary({adt: found[adt]}).splitlines()
    assert [part.strip() for part in rows[2].split("|")[2:5]] == ["2", "200", "2.00 (2.00)"]


def test_both_commands_are_the_same_but_for_the_plugins_options() -> None:
    plain, _, adt = whole_run.RUNS
    assert (plain.steps, plain.lr) == (adt.steps, adt.lr)
    assert adt.adt[0] == "--adt" and "--adt_begin" not in adt.adt and not plain.adt


def test_the_table_is_what_the_json_says() -> None:
    path = DOCUMENTS / "whole_run.json"
    if not path.exists():
        pytest.skip("nothing is published yet: docs/benchmarks.md says so")
    ((_, results),) = CellStore(path).results().items()
    assert whole_run.summary(whole_run.runs_of(results)) in (DOCUMENTS.parent / "benchmarks.md").read_text(encoding="utf-8")


def test_the_table_of_moments_is_what_its_json_says() -> None:
    found = json.loads((DOCUMENTS / "moments.json").read_text(encoding="utf-8"))
    assert whole_run.moments_table(found) in (DOCUMENTS.parent / "method.md").read_text(encoding="utf-8")
