"""The two commands from end to end, in seconds: what they write, how they end, and that a benchmark resumes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adt_plugin.demo import cli
from adt_plugin.demo.bench import BenchOptions, BenchResults, Limit, Row, Section, benchmark, hurried_sections, run_bench
from adt_plugin.demo.cli import bench_main, demo_main
from adt_plugin.demo.study import Setting, Study
from adt_plugin.demo.variants import ADT, BASE, DIFFUSION, Variant, hurried

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tiny_setting: Setting):
    """`--quick`, quicker still."""
    monkeypatch.setattr(cli, "QUICK_SETTING", tiny_setting)


@pytest.fixture
def demo(tiny_cache: Path, tmp_path: Path):
    """Runs the demo with the tiny base and returns the folder it wrote."""

    def run(*arguments: str) -> Path:
        demo_main(["--quick", "--steps", "2", "--cache", str(tiny_cache), "--out", str(tmp_path / "out"), *arguments])
        return tmp_path / "out"

    return run


def test_the_demo_writes_table_numbers_and_pictures(demo, capsys: pytest.CaptureFixture[str]):
    out = demo()
    printed = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in (out / "results.md").read_text(encoding="utf-8").splitlines()[2:]]
    assert rows == ["base", DIFFUSION.name, "ADT"]
    assert (out / "results.md").read_text(encoding="utf-8") in printed
    assert str(out) in printed and "figures mean nothing" in printed
    cells = json.loads((out / "results.json").read_text(encoding="utf-8"))["sections"]["demo"]
    assert [cell["steps"] for cell in cells] == [0, 2, 2]
    assert cells[0]["seconds"] == 0 and cells[2]["seconds"] > 0
    assert (out / "samples.png").read_bytes().startswith(PNG) and (out / "curves.png").read_bytes().startswith(PNG)


def test_the_demo_takes_several_seeds_on_one_base(demo):
    cells = json.loads((demo("--seeds", "2") / "results.json").read_text(encoding="utf-8"))["sections"]["demo"]
    assert [(cell["run"], cell["seed"]) for cell in cells] == [
        ("base", 0),
        (DIFFUSION.name, 0),
        ("ADT", 0),
        (DIFFUSION.name, 1),
        ("ADT", 1),
    ]


def test_ctrl_c_leaves_what_was_finished(
    demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stop_after(2, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        demo()
    assert stopped.value.code == 130
    assert "Interrupted" in capsys.readouterr().out
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "base" in table and DIFFUSION.name in table and "ADT" not in table


def stop_after(runs: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Press Ctrl-C in the run after so many; returns the names of the runs that were begun."""
    begun: list[str] = []
    grade = Study.grade

    def watched(self: Study, variant: Variant, *rest: Any):
        begun.append(variant.name)
        if len(begun) > runs:
            raise KeyboardInterrupt
        return grade(self, variant, *rest)

    monkeypatch.setattr(Study, "grade", watched)
    return begun


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--steps", "-1"], ["--nonsense"]])
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        demo_main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_missing_extra_is_one_line(demo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(SystemExit, match=r"pip install 'adt_plugin\[demo\]'"):
        demo()


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


def test_the_bench_command_runs_what_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    seen: list[BenchOptions] = []
    monkeypatch.setattr(cli, "run_bench", lambda results: seen.append(results.options))
    bench_main(["--out", str(tmp_path), "--seeds", "4", "--split", "validation", "--threads", "2", "--seconds", "30"])
    assert (seen[0].seeds, seen[0].setting.split, seen[0].setting.threads) == (4, "validation", 2)
    assert seen[0].sections[1].rows[0].limit.seconds == 30
    assert str(tmp_path) in capsys.readouterr().out
