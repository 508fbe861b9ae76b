"""The script for the day with a card, in miniature on the CPU: it must not be found broken on that day."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from gpu import effect, hosts, pack, parts, run, tables
from gpu.parts import PARTS, Cell, Part, Setting
from tinyhost.run import REPOSITORY, run_host
from tinyhost.warm import run_warm


def results(out: Path) -> dict[str, dict[str, object]]:
    return {f"{path.parent.name}/{path.stem}": json.loads(path.read_text()) for path in sorted(out.glob("?-*/*.json"))}


MINIATURE = ("--miniature", "--device", "cpu")


def test_the_command_itself_runs_what_needs_no_host(tmp_path: Path) -> None:
    options = (*MINIATURE, "--parts", "1-gpu-check,7-effect")
    command, variables = [REPOSITORY / "tests" / "gpu" / "run.sh", tmp_path, *options], os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=1200)
    found = results(tmp_path)
    assert done.returncode == 0, done.stderr
    statuses = {name: cell["status"] for name, cell in found.items()}
    assert statuses == {"1-gpu-check/sd15": "done", "7-effect/seed-0": "done"}, found
    assert found["1-gpu-check/sd15"]["result"]["ready"] is True
    effect = found["7-effect/seed-0"]["result"]
    assert effect["adt"] != effect["plain"] and effect["plain"]["fd_5"] > 0
    assert (tmp_path / "summary.md").read_text().count("| done |") == 2


def test_what_the_workbench_measures_and_all_its_tables(tmp_path: Path) -> None:
    run.main([str(tmp_path), *MINIATURE, "--parts", "6-cost"])
    found = results(tmp_path)
    assert {name: cell["status"] for name, cell in found.items()} == {"6-cost/tiny": "done", "6-cost/tables": "done"}, found
    cost, page = found["6-cost/tiny"]["result"], (tmp_path / "cost" / "cost.md").read_text()
    assert cost["turn_low"] > cost["step"] > 0 and cost["one_graph_gib"] > 0
    assert "Tiny, 64 px" in page and "| --adt_offload" in page and "## Measured: a GPU" in page


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """What a machine without a network was given: one wheel, and a tree of sd-scripts."""
    folder = tmp_path / "packed"
    (folder / "wheels").mkdir(parents=True)
    (folder / "sd-scripts").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr("carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    return folder


@pytest.mark.skipif(find_spec("pip") is None, reason="this environment has no pip")
def test_a_bare_interpreter_has_what_was_packed_and_the_plugins_hook(packed: Path, tmp_path: Path) -> None:
    """In one that has no package at all; pip's part is done by this environment's, without a network."""
    venv.create(tmp_path / "bare", with_pip=False)
    bare, told = tmp_path / "bare" / "bin" / "python", tmp_path / "python"
    look = "import sys, os, carried; print('adt_plugin_hook' in sys.modules, os.environ['SD_SCRIPTS_DIR'])"
    told.write_text(f'#!/bin/sh\n[ "$2" = gpu.run ] && exec {bare} -c "{look}"\nexec {sys.executable} "$@"\n')
    told.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("SD_SCRIPTS_DIR", "PYTHONPATH")}
    variables = kept | {"PYTHON": str(told), "PACK": str(packed), "PIP_INDEX_URL": "http://127.0.0.1:1"}
    done = subprocess.run(
        [REPOSITORY / "tests" / "gpu" / "run.sh", tmp_path], env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["True", str(packed / "sd-scripts")], done.stderr


def test_what_is_packed_is_what_the_host_and_the_plugin_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = pack.of_the_project()
    assert {"diffusers", "transformers", "accelerate", "tokenizers", "toml"} <= found.keys()
    assert not any(pack.BUILT_FOR_A_CARD.fullmatch(name) for name in found) and "pytest" not in found
    with pytest.raises(SystemExit, match="no train_network.py"):
        pack.main([str(tmp_path / "out"), "--sd-scripts", str(tmp_path)])
    commands: list[list[str]] = []

    def fetched(command: list[str], **keywords: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode="toml" in command[-1])

    monkeypatch.setattr(pack.subprocess, "run", fetched)
    tree = tmp_path / "tree"
    (tree / ".git").mkdir(parents=True)
    (tree / "train_network.py").touch()
    pack.main([str(tmp_path / "out"), "--sd-scripts", str(tree), "--python", "3.10", "--without", "numpy"])
    asked = {command[-1] for command in commands}
    assert f"diffusers=={found['diffusers']}" in asked and not any(text.startswith("numpy==") for text in asked)
    assert all(command[command.index("--python-version") + 1] == "3.10" for command in commands)
    assert f"not packed: toml {found['toml']}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out" / "sd-scripts").iterdir()] == ["train_network.py"]


@pytest.fixture
def warm_host(host_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's scripts run in processes that have imported what they need."""
    monkeypatch.setattr(hosts, "run_host", partial(run_host, runner=run_warm))


@pytest.mark.parametrize(
    ("part", "cell"),
    [
        ("2-sd15", "bf16 adt offload"),
        ("3-sdxl-presets", "8 GB"),
        ("3-sdxl-presets", "8 GB plain"),
        ("4-flow", "flux fp8 adt"),
        ("5-sdxl-full", "adt fused"),
    ],
)
def test_a_cell_of_every_part_that_runs_the_host(part: str, cell: str, warm_host: None, tmp_path: Path) -> None:
    run.main([str(tmp_path), *MINIATURE, "--cell", part, cell])
    (found,) = results(tmp_path).values()
    assert found["status"] == "done", found
    adt = "plain" not in cell
    assert found["result"]["step_seconds"] > 0 and ("turns" in found["result"]) is adt
    assert not adt or (found["result"]["turns"] > 0 and found["result"]["skipped"] == 0)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["2-sd15", "3-sdxl-presets", "4-flow", "5-sdxl-full"])
def test_all_cells_of_the_parts_that_run_the_host(part: str, warm_host: None, tmp_path: Path) -> None:
    run.main([str(tmp_path), *MINIATURE, "--parts", part])
    cells = results(tmp_path)
    assert cells and all(cell["status"] == "done" for cell in cells.values()), cells
    found = {name: cell["result"] for name, cell in cells.items() if "measured" not in name and "plain" not in name}
    assert found and all(result["turns"] > 0 and result["skipped"] == 0 for result in found.values())
    plain = [cell["result"] for name, cell in cells.items() if "plain" in name]
    assert all("turns" not in result and result["step_seconds"] > 0 for result in plain)
    assert not list(tmp_path.glob("host/**/*.safetensors")) and list(tmp_path.glob("host/*/*-adt.jsonl"))
    assert (part in ("3-sdxl-presets", "4-flow")) == bool(plain) and "sd-scripts' own" in (tmp_path / "card.md").read_text()
    assert (part == "4-flow") == any(cell["result"].get("turn_low", 0) > 0 for cell in cells.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_check_without_a_card_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not ready: PyTorch finds no CUDA device"):
        parts.gpu_check(Setting(tmp_path, "cuda", miniature=True), "sd15")


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


def instead_of_a_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Let `run_apart` start a shell script, which gets the cell's arguments."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_cell_whose_process_ends_without_a_result_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instead_of_a_cell(monkeypatch, tmp_path, f'echo "$@" > {tmp_path}/told; kill -9 $$')
    run.run_apart("0-fake", Cell("x", lambda setting: {}), tmp_path / "x.json", ["out"], 50)
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["status"], found["error"]) == ("failed", "its process ended with -9")
    assert (tmp_path / "told").read_text().split()[2:] == ["out", "--limit", "50", "--cell", "0-fake", "x"]


def test_with_a_cell_that_takes_too_long_ends_what_it_has_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The host leads a group of its own, and would go on to hold the card."""
    instead_of_a_cell(monkeypatch, tmp_path, f"setsid sleep 600 & echo $! > {tmp_path}/host; wait")
    run.run_apart("0-fake", Cell("x", lambda setting: {}), tmp_path / "x.json", [], 2)
    assert json.loads((tmp_path / "x.json").read_text())["status"] == "too long"
    gone = [psutil.Process(int(pid)) for pid in (tmp_path / "host").read_text().split() if psutil.pid_exists(int(pid))]
    assert not psutil.wait_procs(gone, timeout=30)[1]


def test_cells_that_are_worth_most_come_first_and_long_ones_are_passed_over_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, clock = [], iter(range(0, 10_000, 60))

    def cell(name: str, minutes: float) -> Cell:
        return Cell(name, lambda setting: ran.append(name) or {}, minutes)

    cells = [cell("a", 1), cell("b", 9), cell("c", 1), cell("d", 1)]
    monkeypatch.setitem(PARTS, "0-fake", Part(60, lambda setting: cells))
    monkeypatch.setattr(run, "FIRST", (("0-fake", "c"),))
    monkeypatch.setattr(run.time, "monotonic", lambda: float(next(clock)))
    call(tmp_path, "--minutes", "9")
    assert ran == ["c", "a"]
    assert "0-fake/b: takes about 9 minutes, which are more than are left" in capsys.readouterr().out
    call(tmp_path, "--plan")
    assert [line.split() for line in capsys.readouterr().out.splitlines()][2] == ["11.0", "9.0", "0-fake/b"]


def test_a_run_that_is_cut_off_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = b"loading\nsteps: 1/30 [00:40<\rsteps: 2/30 [01:20<\n"

    def late(*arguments: object, timeout: float, **keywords: object) -> None:
        raise subprocess.TimeoutExpired("train_network.py", timeout, output=b"", stderr=told)

    monkeypatch.setattr(hosts, "run_host", late)
    monkeypatch.setattr(hosts, "find_host", lambda: tmp_path)
    setting = Setting(tmp_path / "out", "cpu", miniature=True, scratch=tmp_path / "scratch", limit=60)
    with pytest.raises(RuntimeError, match=r"took longer than 55 s\nloading\nsteps: 2/30 \[01:20<$"):
        hosts.host_run(setting, "x", "train_network.py", "sd15", (), adt=False)
    assert not (tmp_path / "out").exists()


def test_a_runs_pace_is_told_from_its_progress_bar_without_its_first_steps() -> None:
    caching = "100%|##| 4/4 [00:01<00:00,  3.10it/s]\n"
    bars = ["1/10 [00:09<01:21,  9.00s/it", "5/10 [00:15<00:15,  3.00s/it, avr_loss=0.1", "10/10 [00:20<00:00,  2.00s/it"]
    log = caching + "\r".join(f"steps: |# | {bar}]" for bar in bars)
    assert hosts.pace(log) == {"step_seconds": 2.0, "later_step_seconds": 1.0}
    assert hosts.pace("steps: 2/2 [00:01<00:00,  4.00it/s]") == {"step_seconds": 0.25}
    assert hosts.pace("nothing") == {}


def test_the_experiments_base_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(effect, "SAVED_EVERY", 1)
    images = torch.randn(4, 3, effect.SMALLEST.side, effect.SMALLEST.side, generator=torch.Generator().manual_seed(0))

    def trained(steps: int, path: Path) -> list[torch.Tensor]:
        torch.manual_seed(0)
        loop = effect.Loop(effect.unet(effect.SMALLEST), None, 0, 1e-2)
        effect.train_base(loop, replace(effect.SMALLEST, base_steps=steps), images, torch.arange(4), path)
        return list(loop.network.parameters())

    whole, part = trained(4, tmp_path / "whole.pt"), trained(3, tmp_path / "part.pt")
    assert not all(map(torch.equal, whole, part))
    assert all(map(torch.equal, whole, trained(4, tmp_path / "part.pt")))


# What becomes of it


def test_the_tables_set_runs_beside_their_plain_ones(tmp_path: Path) -> None:
    plain = {"peak_gib": 5.0, "step_seconds": 9.0, "later_step_seconds": 0.5, "device": "A card, PyTorch 2"}
    adt = plain | {"peak_gib": 5.5, "later_step_seconds": 2.0, "turns": 26, "skipped": 0, "reserved_gib": 6.0}
    cells = {"bf16 plain": plain, "bf16 adt": adt, "bf16 swap plain": plain, "bf16 swap adt": adt, "fp16 adt": adt}
    results = {name: {"status": "done", "seconds": 1, "result": result} for name, result in cells.items()}
    bad = {"one": {"status": "failed", "seconds": 1, "error": "Traceback\nRuntimeError: no | card"}}
    check = {"status": "done", "seconds": 1, "result": {"findings": [{"part": "device", "good": True, "said": "A card"}]}}
    tables.write_tables(tmp_path, {"2-sd15": results, "3-x": bad, "1-gpu-check": {"sdxl": check}, "4-flow": {}})
    said = (tmp_path / "card.md").read_text().splitlines()
    assert "| 2-sd15 bf16 adt | 0.5 | 2 | 1.5 | 1.3 | 5 | 5.5 | 6 | 26 | 0 |" in said
    assert "| 2-sd15 fp16 adt | - | 2 | - | - | - | 5.5 | 6 | 26 | 0 |" in said
    assert sum(line.startswith("| 2-sd15") for line in said) == 3
    assert "| 3-x | one | failed | RuntimeError: no / card |" in said and "| sdxl | device | ok | A card |" in said
    assert "A card, PyTorch 2." in said
    assert json.loads((tmp_path / "card.json").read_text())["2-sd15"]["fp16 adt"]["result"] == adt
    assert tables.partner("bf16 swap adt", cells) == "bf16 swap plain" and tables.partner("adt", cells) == ""


def test_what_comes_first_is_there_and_takes_a_quarter_of_an_hour(tmp_path: Path) -> None:
    setting = Setting(tmp_path, "cuda", miniature=False)
    cells = {(part, cell.name): cell for part in PARTS for cell in PARTS[part].cells(setting)}
    assert sum(cells[key].minutes for key in parts.FIRST) <= 15.5
    assert {key for key, _ in parts.FIRST} == {"1-gpu-check", "2-sd15", "3-sdxl-presets", "4-flow"}
    written = (REPOSITORY / "tests" / "gpu" / "README.md").read_text(encoding="utf-8")
    for name, part in PARTS.items():
        expected = sum(cell.minutes for cell in part.cells(setting))
        assert f"| {name} | {expected:.0f} |" in written, f"| {name} | {expected:.0f} |"


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
