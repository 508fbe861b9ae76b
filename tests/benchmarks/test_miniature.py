"""The miniature's benchmark: what it covers, that it resumes, and what its command does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from adt_plugin.demo import report
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.metrics import Scores
from adt_plugin.demo.study import Setting
from adt_plugin.demo.variants import hurried
from benchmarks import miniature
from benchmarks.ablations import ADT, BASE, DIFFUSION
from benchmarks.miniature import (
    BenchOptions,
    BenchResults,
    Limit,
    Row,
    Section,
    benchmark,
    gain,
    hurried_sections,
    run_bench,
)
from tiny_demo import stop_after

PNG = b"\x89PNG"


@pytest.fixture
def small_bench(tmp_path: Path, tiny_cache: Path, tiny_setting: Setting) -> BenchOptions:
    """A benchmark of two tables and two seeds."""
    variants = [hurried(replace(variant, samplers=("ddim",))) for variant in (BASE, DIFFUSION, ADT)]
    rows = tuple(Row(variant.name, variant, Limit(steps=1)) for variant in variants)
    over_time = tuple(Row(f"{ADT.name}, {s:g} s", variants[-1], Limit(seconds=s)) for s in (0.05, 0.1))
    sections = (Section("Equal optimizer steps", "", rows), Section("Distance against wall time", "", over_time))
    return BenchOptions(tmp_path, tiny_cache, sections, seeds=2, setting=tiny_setting)


def test_a_half_finished_bench_is_resumed(small_bench: BenchOptions, monkeypatch: pytest.MonkeyPatch):
    options, out = small_bench, small_bench.out
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(3, patch)
        run_bench(BenchResults(options))
    halfway = (out / "benchmark.md").read_text(encoding="utf-8")
    assert "Equal optimizer steps" in halfway and "wall time\n" not in halfway

    begun = stop_after(1000, monkeypatch)
    results = BenchResults(options)
    run_bench(results)
    assert begun == ["ADT"] * 6  # the base and both diffusion-only runs were finished
    finished = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))["sections"]
    assert [len(cells) for cells in finished.values()] == [5, 4]
    assert "ADT, 0.1 s" in (out / "benchmark.md").read_text(encoding="utf-8")
    assert (out / "wall-time.png").read_bytes().startswith(PNG)

    begun.clear()
    run_bench(BenchResults(options))
    assert begun == []


def test_every_cell_of_a_bench_has_its_wall_time_and_threads(small_bench: BenchOptions):
    results = BenchResults(small_bench)
    run_bench(results)
    cells = [cell for section in results.cells.values() for cell in section if cell.run != BASE.name]
    assert all(cell.seconds > 0 and cell.threads == 1 for cell in cells)


def test_the_benchmark_covers_what_it_promises():
    sections = {section.title: [row.name for row in section.rows] for section in benchmark(300, 60.0, (30.0, 60.0))}
    assert list(sections) == ["Equal optimizer steps", "Equal wall time", "Distance against wall time", "Ablations", "Cost"]
    for needed in ("base", "ADT", "frozen untrained heads"):
        assert needed in sections["Equal optimizer steps"] and needed in sections["Equal wall time"]
    text = " ".join(sections["Ablations"])
    for part in ("image-to-image", "no diffusion loss", "unary", "unconstrained", "no augmentation", "K =", "weight"):
        assert part in text


def test_hurried_sections_keep_every_row():
    tables = benchmark(3, 0.2, (0.1,))
    assert [[row.name for row in table.rows] for table in hurried_sections(tables)] == [
        [row.name for row in table.rows] for table in tables
    ]


def test_the_command_runs_what_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seen: list[BenchOptions] = []
    monkeypatch.setattr(miniature, "run_bench", lambda results: seen.append(results.options))
    miniature.main(["--out", str(tmp_path), "--seeds", "4", "--split", "validation", "--threads", "2", "--seconds", "30"])
    assert (seen[0].seeds, seen[0].setting.split, seen[0].setting.threads) == (4, "validation", 2)
    assert seen[0].sections[1].rows[0].limit.seconds == 30
    assert str(tmp_path) in capsys.readouterr().out


def cell(run: str, fd: float, recall: float = 0.5, seed: int = 0) -> Cell:
    scores = {steps: Scores(fd * factor, 0.9, recall, 2 * fd) for steps, factor in ((5, 2.0), (10, 1.0), (20, 0.5))}
    return Cell(run, seed, 10.0, 300, 1, {"ddim": scores})


def test_the_gain_is_measured_against_the_best_rival_of_each_column():
    better_at_ten = replace(
        cell("diffusion", 4.0, recall=0.6),
        scores={"ddim": {**cell("", 9.0, 0.6).scores["ddim"], 10: Scores(2.0, 0.9, 0.6, 4.0)}},
    )
    groups = report.grouped([cell("base", 4.0), better_at_ten, cell("ADT", 1.0)])
    assert gain(groups, "ADT", ["base", "diffusion"]) == (
        "ADT against the best of 2 others in each column: FD -75 % (recall -0.100) at 5 steps, "
        "-50 % (recall -0.100) at 10 steps, -75 % (recall -0.100) at 20 steps."
    )
