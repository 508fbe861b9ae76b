"""The bench of whole runs: its command, its figures, and its table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import DOCUMENTS, whole_run
from benchmarks.host_training import POINTS, host_options, point_name
from benchmarks.small_sd import FIGURES
from benchmarks.store import CellStore


def cell(value: float) -> dict[str, Any]:
    """A run whose figures all have this value."""
    return {"seconds": 100 * value, "scores": {point_name(*point): dict.fromkeys(FIGURES, value) for point in POINTS}}


def test_runs_are_told_by_their_labels_and_compared_seed_by_seed() -> None:
    plain, adt = whole_run.PLAIN.name, whole_run.WHOLE_ADT.name
    labels = {f"heldout: {adt}, seed 10": 3, f"heldout: {adt}, seed 2": 1, f"heldout: {plain}, seed 10": 4}
    found = whole_run.runs_of({label: cell(value) for label, value in labels.items()})
    assert [(run, list(seeds)) for run, seeds in found.items()] == [(plain, [10]), (adt, [2, 10])]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in whole_run.summary(found).splitlines()[2:]]
    assert rows[1][:4] == [adt, "2, 10", "200", "2.00 (2.00)"]
    ((run, seed, *changed),) = (
        [part.strip() for part in line.split("|")[1:-1]] for line in whole_run.changes(found).splitlines()[2:]
    )
    assert (run, seed, set(changed)) == (adt, "10", {"-25 % (-1.00)"})
    longer = {f"heldout: {whole_run.LONG_PLAIN.name}, seed 10": 2}
    found = whole_run.runs_of({label: cell(value) for label, value in (labels | longer).items()})
    rows = [line.split("|")[1].strip() for line in whole_run.changes(found).splitlines()[2:]]
    assert rows == [whole_run.LONG_PLAIN.name, adt]
    ((run, seed, *changed),) = (
        [part.strip() for part in line.split("|")[1:-1]]
        for line in whole_run.changes(found, whole_run.LONG_PLAIN).splitlines()[2:]
    )
    assert (run, seed, set(changed)) == (adt, "10", {"+50 % (+1.00)"})


def test_both_commands_are_the_same_but_for_the_plugins_options() -> None:
    plain, adt = whole_run.PLAIN, whole_run.WHOLE_ADT
    assert (plain.steps, plain.lr) == (adt.steps, adt.lr)
    assert adt.adt[0] == "--adt" and "--adt_begin" not in adt.adt and not plain.adt


def test_budgets_compare_adt_with_plain_training_of_its_total_time() -> None:
    budgets = whole_run.BUDGETS
    assert [budget for budget, *_ in budgets] == sorted({1.0, 2.0, 3.0} | {budget for budget, *_ in budgets})
    assert all(adt.adt == whole_run.WITH_ADT and not plain.adt and adt.steps < plain.steps for _, plain, adt in budgets)
    plain, adt = (f"heldout: {recipe.name}, seed 1" for recipe in budgets[-1][1:])
    assert len(whole_run.budgets_table({adt: cell(1)}).splitlines()) == 2  # only pairs are shown
    lines = whole_run.budgets_table({adt: cell(3), plain: cell(4)}).splitlines()[2:]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in lines]
    assert [row[:3] for row in rows] == [
        ["3", "plain training, 6000 steps", "400"],
        ["3", "ADT as it ships, 3350 steps", "300"],
        ["3", "ADT against plain", ""],
    ]
    assert set(rows[2][3:-1]) == {"-25 % (-1.00)"} and rows[2][-1] == "-1.00"


def test_full_fine_tuning_is_another_script_without_a_network() -> None:
    lora, full = (host_options(replace(whole_run.WHOLE_ADT, full=full), 1, None) for full in (False, True))
    assert replace(whole_run.PLAIN, full=True).script == "train_db.py"
    assert "--network_dim" in lora and not any(option.startswith("--network") for option in full)
    assert set(whole_run.WITH_ADT) < set(full)


@pytest.mark.parametrize("kind", ["LoRA", "full fine-tuning"])
def test_the_table_is_what_the_json_says(kind: str) -> None:
    groups = CellStore(DOCUMENTS / "whole_run.json").results()
    found = [results for group, results in groups.items() if group.startswith(kind)]
    if not found:
        pytest.skip("nothing is published yet: docs/benchmarks.md says so")
    runs, page = whole_run.runs_of(found[0]), (DOCUMENTS.parent / "benchmarks.md").read_text(encoding="utf-8")
    assert whole_run.summary(runs) in page and whole_run.changes(runs) in page
    if kind == "LoRA":
        assert whole_run.budgets_table(found[0]) in page and whole_run.changes(runs, whole_run.LONG_PLAIN) in page


def test_the_table_of_moments_is_what_its_json_says() -> None:
    found = json.loads((DOCUMENTS / "moments.json").read_text(encoding="utf-8"))
    assert whole_run.moments_table(found) in (DOCUMENTS.parent / "method.md").read_text(encoding="utf-8")
