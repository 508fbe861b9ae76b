"""What `cost` prints of one run."""

from __future__ import annotations

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts
from adt_plugin.cost.count import Peaks
from adt_plugin.cost.measure import Base, Measured
from adt_plugin.cost.report import Measurement, answers, report
from adt_plugin.cost.workbench import Workload

GIB = 2**30
PARTS = Parts(forward=1e12, step=3e12, decode_real=0.5e12, decode_generated=2e12, judge=0.25e12)
PEAKS = Peaks(plain=2 * GIB, turn=int(2.5 * GIB), backbone=int(0.5 * GIB), graph=GIB)
CONFIG = ADTConfig(steps=4, grad_steps=2, begin=0, warmup=0, start_min=0.0, memory="low")


def cells(lines: list[str], name: str) -> list[str]:
    """The values of the line that begins so."""
    found = next(line for line in lines if line.strip().startswith(name))
    return found.strip().removeprefix(name).split()


def test_the_count_alone() -> None:
    lines = list(report(Workload(), CONFIG, 100, PARTS, PEAKS))
    assert lines[0].startswith("Stable Diffusion 1.5, 512x512, batch 1, LoRA of rank 16, gradient checkpointing, bf16")
    assert cells(lines, "one denoiser forward, f") == ["1.00", "TFLOP"]
    assert cells(lines, "sd-scripts' step") == ["3.00", "f"]
    assert cells(lines, "a turn, on average over its starts") == ["10.50", "f"]  # 2.5 + 3 * 1.75 + 2.75
    assert cells(lines, "a run of 100 steps, a turn every 1, over the plain one") == ["4.50", "x"]
    assert cells(lines, "over the first and the backbone together") == ["1.00", "x"]


def test_kept_graphs_are_in_the_peak() -> None:
    lines = list(report(Workload(), ADTConfig(steps=4, grad_steps=2, memory="fast"), 100, PARTS, PEAKS))
    assert cells(lines, "with a turn") == ["4.50", "GiB"]


def test_the_measurement_stands_beside_the_count() -> None:
    seconds = Parts(*(value / 1e12 for value in (1e12, 3.5e12, 0.5e12, 2e12, 0.25e12)))
    base = Base(seconds=3.6, peak=2 * GIB, backbone=GIB // 2, parts=seconds)
    measured = Measurement("A Card", base, Measured(seconds=12.0, peak=3 * GIB), start=3, expected=10.0)
    lines = list(report(Workload(), CONFIG, 100, PARTS, PEAKS, measured))
    assert "measured, A Card" in lines[1]
    assert cells(lines, "sd-scripts' step") == ["3.00", "f", "3.50", "f"]
    assert cells(lines, "over the first and the backbone together") == ["1.00", "x", "1.20", "x"]
    assert lines[-1].endswith("from step 3: 12 s, 1.20 times the sum of its parts.")


def test_the_answers_are_which_card_how_long_and_how_much_of_the_disk() -> None:
    peaks = Peaks(plain=9 * GIB, turn=10 * GIB, backbone=GIB, graph=GIB, state=70_000_000)
    fits, disk = answers(CONFIG, 100, peaks)
    assert "fits a card of: 8 GB no, 12 GB no, 16 GB yes, 24 GB yes" in fits  # 10.7 GB and 1.4 GB
    assert disk.startswith("on the disk: 70 MB more in each saved state")
    assert "12 GB yes" in next(answers(CONFIG, 100, Peaks(GIB, int(10.5e9), GIB, GIB)))


def test_hours_come_with_a_measurement() -> None:
    seconds = Parts(forward=1.0, step=3.0, decode_real=0.5, decode_generated=2.0, judge=0.25)
    base = Base(seconds=3.6, peak=2 * GIB, backbone=GIB // 2, parts=seconds)
    measured = Measurement("A Card", base, Measured(seconds=12.0, peak=3 * GIB), start=3, expected=10.0)
    fits, hours, _ = answers(CONFIG, 1000, PEAKS, measured)
    assert "8 GB yes" in fits
    assert hours == "this run: 3 h 55 min with --adt, 1 h 0 min without, on A Card"  # 10.5 s more in every step
