"""Tables, the sentence about the gain, and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from adt_plugin.demo import pictures, report
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.metrics import Scores
from adt_plugin.demo.study import Setting


def cell(run: str, fd: float, recall: float = 0.5, seed: int = 0) -> Cell:
    scores = {
        steps: Scores(fd * factor, 0.1, 2 * fd, 0.9, recall, 0.8, 1.0) for steps, factor in ((5, 2.0), (10, 1.0), (20, 0.5))
    }
    return Cell(run, seed, 10.0, 300, 1, {"ddim": scores})


def test_a_table_is_markdown_with_aligned_columns():
    assert report.table(["run", "FD"], [["base", "1.5"], ["a longer name", "12.25"]]).splitlines() == [
        "| run           |    FD |",
        "|---------------|------:|",
        "| base          |   1.5 |",
        "| a longer name | 12.25 |",
    ]


def test_several_seeds_have_a_mean_and_a_sample_standard_deviation():
    assert report.spread([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert report.spread([1.0], 1) == "1.0"


def test_the_comparison_has_one_row_per_run():
    groups = report.grouped([cell("base", 4.0), cell("ADT", 2.0), cell("ADT", 3.0, seed=1)])
    lines = report.comparison(groups).splitlines()
    assert len(lines) == 4
    assert [part.strip() for part in lines[3].split("|")[1:5]] == ["ADT", "2", "5.00 ± 1.41", "2.50 ± 0.71"]


def test_curves_over_sampler_steps_are_one_per_seed():
    lines = report.by_sampler_steps([cell("ADT", 1.0), cell("ADT", 2.0, seed=1)])
    assert lines == {"ADT": [[(5.0, 2.0), (10.0, 1.0), (20.0, 0.5)], [(5.0, 4.0), (10.0, 2.0), (20.0, 1.0)]]}


def test_the_json_holds_every_cell_and_names_no_machine(tmp_path: Path):
    report.write_json(tmp_path / "x.json", Setting(), {"one": [cell("ADT", 1.0)]})
    written = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert written["sections"]["one"][0]["scores"]["ddim"]["10"]["fd"] == 1.0
    assert written["setting"]["samples"] == 1000
    assert set(written["machine"]) == {"torch", "python", "processor", "system"}


def test_tiles_are_laid_out_row_by_row():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2)
    tiled = pictures.tile(images, columns=3)
    assert tiled.shape == (2 * 3, 3 * 3, 1)
    assert (tiled[2::3] == pictures.FRAME).all() and (tiled[:, 2::3] == pictures.FRAME).all()
    assert tiled[::3, ::3, 0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_pictures_are_written(tmp_path: Path):
    rows = {name: torch.zeros(12, 1, 28, 28) for name in ("base", "ADT", "third")}
    pictures.sample_rows(tmp_path / "deep" / "samples.png", [("5 steps", rows), ("10 steps", rows)])
    panel = {("title", "seconds"): {"ADT": [[(0.0, 2.0), (1.0, 1.0)], [(0.0, 3.0), (1.0, 1.5)]]}}
    pictures.curves(tmp_path / "curves.png", panel, panel)
    for path in (tmp_path / "deep" / "samples.png", tmp_path / "curves.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"adt_plugin\[demo\]"):
        pictures.new_figure(1, 1)
