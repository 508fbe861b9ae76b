"""The document of what was counted and measured, from results made up here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adt_plugin.cost.workbench import Workload
from benchmarks import cost_sweep as sweep
from benchmarks import cost_tables as tables
from benchmarks.store import CellStore

BENCHMARKS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
GIB = 2**30
PARTS = {"forward": 1.0, "step": 3.0, "decode_real": 0.5, "decode_generated": 2.0, "judge": 0.5}
WORKLOAD = Workload()


def grid_cells(slower: float = 1.0, more: int = 0) -> dict[str, object]:
    """A grid whose turns are the sum of their parts, but for the last."""
    base = {"seconds": 4.0, "peak": 2 * GIB, "backbone": GIB // 2, "parts": PARTS}
    cells: dict[str, object] = {sweep.base_label(WORKLOAD): base}
    for steps, grad_steps in sweep.grid():
        last = (steps, grad_steps) == (20, 8)
        seconds = (steps + 3.0 * grad_steps + 3.0) * (slower if last else 1.0)
        cells[sweep.grid_label(steps, grad_steps, "replay")] = {"seconds": seconds, "peak": 2 * GIB + (more if last else 0)}
        cells[sweep.grid_label(steps, grad_steps, "one graph")] = {"seconds": seconds / 2, "peak": 4 * GIB}
    return cells


def test_targets_that_are_held_are_said_to_be() -> None:
    text = "\n".join(tables.grid_section(grid_cells(), WORKLOAD))
    assert "A turn is at most 1.00 times its parts (held). Peaks differ by 0.00% over all m and K (held)" in text
    assert "their ratio is at most 0.800 (held)." in text
    assert "| 10 | 2 | 19 | 1.00 | 4.75 | 0.800 | 0.50 | 1.600 |" in re.sub(" +", " ", text)


def test_targets_that_are_missed_are_said_to_be() -> None:
    text = "\n".join(tables.grid_section(grid_cells(slower=1.3, more=GIB), WORKLOAD))
    assert "A turn is at most 1.30 times its parts (missed). Peaks differ by 50.00% over all m and K (missed)" in text
    assert "their ratio is at most 1.200 (missed)." in text


@pytest.mark.parametrize(("peak", "said"), [(2.7, "1.080 (held)"), (3.0, "1.200 (missed)")])
def test_the_counted_targets_are_judged(peak: float, said: str) -> None:
    peaks = {"plain": 2 * GIB, "turn": int(peak * GIB), "backbone": GIB // 2, "graph": 0}
    cells = {f"{WORKLOAD}: defaults": {"parts": PARTS, "peaks": peaks}}
    assert f"a peak's ratio of at most {said}" in "".join(tables.counted_verdict(cells))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_power_law_is_fitted_exactly(power: float) -> None:
    assert tables.exponent([(x, 3 * x**power) for x in (1.0, 2.0, 5.0)]) == pytest.approx(power)


def test_a_gpu_is_told_from_a_processor_by_its_name() -> None:
    assert tables.is_gpu("NVIDIA H200, PyTorch 2.13.0")
    assert not tables.is_gpu("AMD EPYC, one thread, PyTorch 2.13.0")


def test_a_model_that_was_not_measured_says_so() -> None:
    text = "\n".join(tables.size_section({}, sweep.USUAL))
    assert text.count("not measured") == 4 * len(sweep.USUAL)


def test_the_document_is_what_the_results_say() -> None:
    """docs/benchmarks/cost.md was not edited by hand."""
    machines = CellStore(BENCHMARKS / "cost.json").results()
    assert (BENCHMARKS / "cost.md").read_text(encoding="utf-8") == "\n\n".join(tables.paragraphs(machines)) + "\n"
