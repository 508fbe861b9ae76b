"""What `cost` prints of one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts
from adt_plugin.core.look import Look
from adt_plugin.core.report import TurnReport
from adt_plugin.core.run.monitor import Monitor
from adt_plugin.cost.count import Peaks
from adt_plugin.cost.measure import Base, Measured
from adt_plugin.cost.report import ROW, Measurement, answers, report, rows_and_pictures
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
    fits, disk = answers(Workload(), CONFIG, 100, peaks)
    assert "fits a card of: 8 GB no, 12 GB no, 16 GB yes, 24 GB yes" in fits  # 10.7 GB and 1.4 GB
    assert disk.startswith(
        "on the disk: 70 MB more in each saved state, 0.1 MB of rows and at most 4 MB of pictures for the run;"
    )
    assert "12 GB yes" in next(answers(Workload(), CONFIG, 100, Peaks(GIB, int(10.5e9), GIB, GIB)))


def test_rows_and_pictures_are_no_larger_than_said(tmp_path: Path) -> None:
    """A run's own files, with noise in place of images, which no PNG makes smaller."""

    def noise(count: int) -> Tensor:
        return torch.rand(count, 3, 64, 64) * 2 - 1

    third = 1 / 3  # as long as a number gets
    numbers = dict.fromkeys(
        ("loss_g", "loss_d", "score_real", "score_gen", "grad_norm", "grad_norm_raw", "grad_norm_diffusion", "distance"), third
    )
    turn = TurnReport(
        turn=1, warmup=False, start=4, cfg_scale=third, grad_positions=[1, 3], **numbers, step_grad_norms=[third] * 4,
        skipped=False, seconds={},
        gen=noise(2), real=noise(2), scores=torch.zeros(2), pairs=torch.zeros(2, 2), kid=third, spread=third,
    )  # fmt: skip
    monitor = Monitor(tmp_path, "run", 2, {})
    monitor.add_panel(Look(noise(1), noise(1), 0.0, 0.0, 3), ["turn 0", "", "", ""])
    for number in (1, 2, 3, 4):
        monitor.record(replace(turn, turn=number), step=number)
        if number % 2 == 0:
            monitor.add_panel(Look(noise(1), noise(1), 0.0, 0.0, 3), [f"turn {number}", "", "", ""])
    config = ADTConfig(begin=0, warmup=0, pictures_every=2, decode_crop=256)
    rows, pictures = rows_and_pictures(Workload(resolution=64, batch=2), config, 4)
    assert rows == 4 * ROW and abs(monitor.rows.stat().st_size / rows - 1) < 0.5
    assert 0.5 * pictures < sum(path.stat().st_size for path in tmp_path.glob("*.png")) < 1.02 * pictures
    assert rows_and_pictures(Workload(), replace(config, pictures_every=0), 4) == (4 * ROW, 0)


def test_hours_come_with_a_measurement() -> None:
    seconds = Parts(forward=1.0, step=3.0, decode_real=0.5, decode_generated=2.0, judge=0.25)
    base = Base(seconds=3.6, peak=2 * GIB, backbone=GIB // 2, parts=seconds)
    measured = Measurement("A Card", base, Measured(seconds=12.0, peak=3 * GIB), start=3, expected=10.0)
    fits, hours, _ = answers(Workload(), CONFIG, 1000, PEAKS, measured)
    assert "8 GB yes" in fits
    assert hours == "this run: 3 h 55 min with --adt, 1 h 0 min without, on A Card"  # 10.5 s more in every step
