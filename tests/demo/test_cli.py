"""The command `demo` from end to end, in seconds: what it writes and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from adt_plugin.demo import cli
from adt_plugin.demo.cli import demo_main
from adt_plugin.demo.demo import CURVE_POINTS, DemoOptions, DemoResults, run_variant
from adt_plugin.demo.diffusion import GRIDS
from adt_plugin.demo.study import Setting, Study
from adt_plugin.demo.variants import ADT, PLAIN
from tiny_demo import stop_after

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tiny_setting: Setting):
    """`--quick`, quicker still."""
    monkeypatch.setattr(cli, "QUICK_SETTING", tiny_setting)


@pytest.fixture
def demo(tmp_path: Path):
    """Runs the demo for an instant and returns the folder it wrote."""

    def run(*arguments: str) -> Path:
        demo_main(["--quick", "--seconds", "2", "--out", str(tmp_path / "out"), *arguments])
        return tmp_path / "out"

    return run


def test_the_demo_writes_table_numbers_and_pictures_of_several_seeds_on_one_base(demo, capsys: pytest.CaptureFixture[str]):
    out = demo("--seeds", "2")
    printed = capsys.readouterr().out
    tables = (out / "results.md").read_text(encoding="utf-8").split("\n\n")
    rows = [[line.split("|")[1].strip() for line in table.splitlines()] for table in tables]
    assert [(found[0], found[2:]) for found in rows] == [
        (f"{grid} grid", ["base", PLAIN.name, "ADT"]) for grid in GRIDS.values()
    ]
    assert (out / "results.md").read_text(encoding="utf-8") in printed
    assert str(out) in printed and "figures mean nothing" in printed
    base, *tuned = json.loads((out / "results.json").read_text(encoding="utf-8"))["sections"]["demo"]
    assert (base["run"], base["seed"], base["steps"], base["seconds"]) == ("base", 0, 0, 0)
    assert [(cell["run"], cell["seed"]) for cell in tuned] == [(run, seed) for seed in (0, 1) for run in (PLAIN.name, "ADT")]
    assert all(cell["seconds"] > 0 for cell in tuned)
    assert all(cell["steps"] > 0 for cell in tuned if cell["run"] == PLAIN.name)  # ADT's may end in its warm-up
    assert (out / "samples.png").read_bytes().startswith(PNG) and (out / "curves.png").read_bytes().startswith(PNG)


def test_a_run_whose_time_ends_in_its_warmup_has_as_many_points_as_another(tiny_study: Study, tmp_path: Path):
    results = DemoResults(DemoOptions(tmp_path, seconds=1e-3, curve_samples=8, setting=tiny_study.setting))
    run_variant(tiny_study, ADT, 0, results)
    (curve,) = results.curves[ADT.name]
    assert results.cells[0].steps == 0 and len(curve) == CURVE_POINTS


def test_ctrl_c_leaves_what_was_finished(
    demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stop_after(2, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        demo()
    assert stopped.value.code == 130
    assert "Interrupted" in capsys.readouterr().out
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "base" in table and PLAIN.name in table and "ADT" not in table


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--seconds", "-1"], ["--nonsense"]])
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        demo_main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_missing_extra_is_one_line(demo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(SystemExit, match=r"pip install 'adt_plugin\[demo\]'"):
        demo()
