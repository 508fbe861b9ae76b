"""All tables of cost for the tiny model, from nothing, from everything, and from a part."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from adt_plugin.cost.workbench import Workload
from benchmarks import cost
from benchmarks import cost_sweep as sweep
from benchmarks.cost_sweep import Scale


@pytest.fixture
def tiny_scale(monkeypatch: MonkeyPatch) -> Scale:
    """All tables of the tiny model, the smallest that they can be."""
    usual = Workload("tiny", 64, 1, 4, True, "fp32")
    scale = Scale(False, usual, usual, (usual, Workload("tiny", 128, 1, 4, True, "fp32")), (usual,), (usual,))
    monkeypatch.setattr(sweep, "scale_of", lambda device: scale)
    monkeypatch.setattr(sweep, "USUAL", (usual,))
    monkeypatch.setattr(sweep, "GRID_STEPS", (2, 4))
    monkeypatch.setattr(sweep, "GRID_GRAD_STEPS", (1, 2))
    monkeypatch.setattr(sweep, "levers", lambda workload, on_gpu: LEVERS)
    return scale


LEVERS = tuple(lever for lever in sweep.levers(Workload("sd15", 64), on_gpu=True) if not lever.compiled)[::3]
"""The reference and two more."""


@pytest.mark.slow
def test_all_tables_and_nothing_is_measured_twice(tiny_scale: Scale, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    command = ["--out", str(tmp_path), "--device", "cpu", "--repeats", "1"]
    cost.main(command)
    page, path = (tmp_path / "cost.md").read_text(), tmp_path / "cost.json"
    machines = json.loads(path.read_text())
    (device,) = (name for name in machines if name != "counted")
    assert len(machines["counted"]) == 2
    page = re.sub(" +", " ", page)
    assert "| 4 | 2 |" in page and "Fitted exponents of time" in page and "Not measured yet" in page
    for lever in LEVERS:
        assert f"| {lever.name} |" in page
    with monkeypatch.context() as patch:  # nothing to count, nothing to measure
        patch.setattr(cost, "count", None)
        patch.setattr(sweep, "prepared", None)
        cost.main(command)
    assert re.sub(" +", " ", (tmp_path / "cost.md").read_text()) == page

    interrupted = json.loads(path.read_text())
    lost = interrupted[device].popitem()[0]
    path.write_text(json.dumps(interrupted))
    cost.main(command)
    found = json.loads(path.read_text())
    assert found[device].keys() == machines[device].keys() and found["counted"] == machines["counted"]
    assert all(found[device][label] == machines[device][label] for label in found[device] if label != lost)
