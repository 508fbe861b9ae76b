"""Stored cells: read back as they were, never measured twice, measured anew when a setting changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo.cells import Cell, CellStore, digest
from adt_plugin.demo.metrics import Scores
from adt_plugin.demo.study import Setting
from adt_plugin.demo.variants import ABLATIONS, ADT

CELL = Cell("ADT", 1, 12.5, 300, 1, {"ddim": {5: Scores(1.5, 0.9, 0.8, 3.0), 10: Scores(1.25, 0.95, 0.75, 2.5)}})


def never() -> Cell:
    raise AssertionError("measured again")


def test_a_cell_survives_json():
    assert Cell.from_json(CELL.as_json()) == CELL


def test_a_stored_cell_is_not_measured_again(tmp_path: Path):
    store = CellStore(tmp_path / "cells")
    assert store.get_or_run("adt", ("settings", 1), lambda: CELL) == (CELL, True)
    assert store.get_or_run("adt", ("settings", 1), never) == (CELL, False)


def test_other_settings_are_another_cell(tmp_path: Path):
    store = CellStore(tmp_path)
    store.get_or_run("adt", ("settings", 1), lambda: CELL)
    assert store.get_or_run("adt", ("settings", 2), lambda: CELL)[1]


def test_an_interrupted_cell_is_not_stored(tmp_path: Path):
    def interrupted() -> Cell:
        raise KeyboardInterrupt

    store = CellStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.get_or_run("adt", 1, interrupted)
    assert list(tmp_path.iterdir()) == []


def test_digests_tell_plans_and_settings_apart():
    digests = {digest((Setting(), variant)) for variant in (ADT, *ABLATIONS)}
    assert len(digests) == 1 + len(ABLATIONS)
    assert digest(Setting(split="validation")) != digest(Setting())


def test_writing_replaces_the_file_and_leaves_no_temporary(tmp_path: Path):
    path = tmp_path / "folder" / "x.txt"
    write_atomically(path, "one")
    write_atomically(path, "zwei ±")
    assert path.read_text(encoding="utf-8") == "zwei ±"
    assert list(path.parent.iterdir()) == [path]
