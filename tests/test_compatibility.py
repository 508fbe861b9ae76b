"""docs/compatibility.md: what it makes of the cells of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import compatibility
from compatibility import PROJECT, REQUIREMENTS, columns, keep, kept, merged, page, read, verdict
from environments import ENVIRONMENTS, TORCH, TORCHVISION

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMN = ("abc (2026-01-01)", PROJECT)


def cell(found: str = "works", **changed: str) -> dict[str, Any]:
    plain = {"commit": COLUMN[0], "environment": COLUMN[1], "trainer": "train_network.py", "flag": "", "date": "2026-01-02"}
    return plain | {"versions": {"python": "3.11"}, "found": found} | changed


def test_a_new_run_takes_the_place_of_an_old_one_and_leaves_the_others() -> None:
    old = [cell("FAILS"), cell(flag="--x"), cell(environment="gui")]
    cells = merged(old, [cell()])
    assert [verdict(cells, COLUMN, "train_network.py", flag) for flag in ("", "--x", "--y")] == ["works", "works", "not run"]
    assert columns(cells) == [COLUMN, (COLUMN[0], "gui")]


def test_what_a_commit_lacks_in_one_environment_it_lacks_in_every_other() -> None:
    cells = [cell("not in this version"), cell(flag="--x"), cell(environment="gui", flag="--y")]
    column = (COLUMN[0], "gui")
    assert [verdict(cells, column, "train_network.py", flag) for flag in ("", "--x")] == ["not in this version", "not run"]


@pytest.mark.parametrize("outcomes", [("works", "FAILS"), ("FAILS", "works"), ("FAILS", "not in this version")])
def test_a_cell_that_failed_in_one_of_its_tests_has_failed(outcomes: tuple[str, str]) -> None:
    assert [found["found"] for found in merged([], map(cell, outcomes))] == ["FAILS"]


def test_what_a_test_was_skipped_for_is_told_apart() -> None:
    def skipped(reason: str) -> str:
        return read(json.dumps({"outcome": "skipped", "reason": reason}))["found"]

    assert skipped("bitsandbytes is not installed") == "not installed"
    assert skipped("sd-scripts-v0.9.1 has no sd3_train.py") == "not in this version"
    assert read(json.dumps({"outcome": "failed"}))["found"] == "FAILS"


def test_cells_are_kept_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "CELLS", tmp_path / "cells.json")
    cells = [cell(), cell(flag="--x", found="FAILS"), cell(commit="def (2026-02-02)", environment="gui")]
    keep(cells)
    assert kept() == cells


def test_the_page_is_what_the_kept_cells_say() -> None:
    assert compatibility.PAGE.read_text(encoding="utf-8") == "\n".join(page(kept())) + "\n"


def test_every_environment_has_its_requirements_without_an_address() -> None:
    files = {path.stem for path in REQUIREMENTS.glob("*.txt")}
    assert {environment.name.partition(",")[0] for environment in ENVIRONMENTS} == files | {PROJECT}
    assert not any("://" in path.read_text(encoding="utf-8") for path in REQUIREMENTS.glob("*.txt"))


def test_environments_take_the_torch_that_the_projects_own_takes() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"install {' '.join(packages)}\n" in script for packages in (TORCH, TORCHVISION))
