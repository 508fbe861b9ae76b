"""The script for the day with a card, in miniature on the CPU: it must not be found broken on that day."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from gpu import parts, run
from gpu.parts import PARTS, Cell, Part, Setting
from tinyhost.run import REPOSITORY

WITHOUT_HOST = "1-gpu-check,6-cost,7-effect"


def results(out: Path) -> dict[str, dict[str, object]]:
    return {f"{path.parent.name}/{path.stem}": json.loads(path.read_text()) for path in sorted(out.glob("?-*/*.json"))}


def test_the_parts_that_need_no_host_run_by_the_command_itself(tmp_path: Path) -> None:
    options = ("--miniature", "--device", "cpu", "--parts", WITHOUT_HOST)
    command, variables = [REPOSITORY / "tests" / "gpu" / "run.sh", tmp_path, *options], os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=1200)
    found = results(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {name: cell["status"] for name, cell in found.items()} == dict.fromkeys(
        ("1-gpu-check/sd15", "6-cost/tiny", "7-effect/seed-0"), "done"
    ), found
    cost, effect = found["6-cost/tiny"]["result"], found["7-effect/seed-0"]["result"]
    assert found["1-gpu-check/sd15"]["result"]["ready"] is True
    assert cost["turn_low"] > cost["step"] > 0 and cost["one_graph_gib"] > 0
    assert effect["adt"] != effect["plain"] and effect["plain"]["fd_5"] > 0
    assert (tmp_path / "summary.md").read_text().count("| done |") == 3


@pytest.mark.skipif(find_spec("pip") is None, reason="this environment has no pip")
def test_wheels_that_were_carried_are_there_without_a_network(tmp_path: Path) -> None:
    wheels, told = tmp_path / "wheels", tmp_path / "python"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr("carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    # in place of the parts themselves
    instead = f'exec {sys.executable} -c "import carried; print(1 + 1)"'
    told.write_text(f'#!/bin/sh\n[ "$2" = gpu.run ] && {instead}\nexec {sys.executable} "$@"\n')
    told.chmod(0o755)
    variables = os.environ | {"PYTHON": str(told), "WHEELS": str(wheels), "PIP_INDEX_URL": "http://127.0.0.1:1"}
    done = subprocess.run(
        [REPOSITORY / "tests" / "gpu" / "run.sh", tmp_path], env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("part", ["2-sd15", "3-sdxl-presets", "4-flow", "5-sdxl-full"])
def test_the_parts_that_run_the_host(part: str, host_dir: Path, tmp_path: Path) -> None:
    run.main([str(tmp_path), "--miniature", "--device", "cpu", "--parts", part])
    cells = results(tmp_path)
    assert cells and all(cell["status"] == "done" for cell in cells.values()), cells
    found = {name: cell["result"] for name, cell in cells.items() if "measured" not in name}
    assert found and all(result["turns"] > 0 and result["skipped"] == 0 for result in found.values())
    assert (part == "4-flow") == any(cell["result"].get("turn_low", 0) > 0 for cell in cells.values())


# Its own machinery


def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **cells: object) -> list[str]:
    """Two cells of one part; returns the list of those that ran."""
    ran = []

    def cell(name: str) -> Cell:
        def measure(setting: Setting) -> dict[str, object]:
            ran.append(name)
            if isinstance(cells[name], Exception):
                raise cells[name]
            return {"found": cells[name]}

        return Cell(name, measure)

    monkeypatch.setitem(PARTS, "0-fake", Part(cells.pop("minutes", 1), lambda setting: [cell(name) for name in cells]))
    return ran


def call(tmp_path: Path, *options: str) -> None:
    run.main([str(tmp_path), "--miniature", "--device", "cpu", "--parts", "0-fake", *options])


def test_what_has_ended_is_not_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = fake(monkeypatch, tmp_path, first=1, second=RuntimeError("no card | any more"), third=3)
    call(tmp_path)
    call(tmp_path)
    assert ran == ["first", "second", "third"]
    call(tmp_path, "--again")
    assert ran[3:] == ["second"]
    said = (tmp_path / "summary.md").read_text()
    assert "| 0-fake | first | done |" in said and "RuntimeError: no card / any more" in said and "found 3" in said


def test_a_part_ends_with_its_time_and_goes_on_at_the_next_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = fake(monkeypatch, tmp_path, first=1, second=2, minutes=1e-9)
    call(tmp_path)
    assert ran == ["first"]
    call(tmp_path)
    assert ran == ["first", "second"]


def test_a_cell_has_a_process_of_its_own_and_a_limit_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not in miniature; a process that ends without a result, as a killed one, is a failure."""
    setting = Setting(tmp_path, "cpu", miniature=False)
    calls = []

    def process(command: list[str], timeout: float, stdin: int) -> subprocess.CompletedProcess[str]:
        calls.append((command[-3:], timeout))
        if timeout < 1:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, -9)

    monkeypatch.setattr(subprocess, "run", process)
    cell = Cell("x", lambda setting: {})
    for limit, status in ((5.0, "failed"), (0.5, "too long")):
        path = tmp_path / f"{limit}.json"
        run.run_apart(setting, "0-fake", cell, path, [], limit)
        assert json.loads(path.read_text())["status"] == status
    assert calls[0] == (["--cell", "0-fake", "x"], 5.0)


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--parts does not know 9-x: there are 1-gpu-check, "):
        run.main([str(tmp_path), "--parts", "9-x"])


def test_on_a_card_every_part_has_its_cells_and_every_preset_its_run(tmp_path: Path) -> None:
    setting = Setting(tmp_path, "cuda", miniature=False)
    names = {part: [cell.name for cell in PARTS[part].cells(setting)] for part in PARTS}
    assert all(len(set(cells)) == len(cells) >= 3 for cells in names.values())
    assert {"bf16 plain", "bf16 adt", "fp16 adt", "fp16 adt offload"} <= set(names["2-sd15"])
    presets = {path.stem for path in (REPOSITORY / "sample_configs").glob("sdxl_lora_*gb.toml")}
    assert presets == {f"sdxl_lora_{card}gb" for card in parts.CARDS}
