"""Two processes of the real host: `accelerate launch --num_processes 2`, gloo on the CPU.

The full fine-tuning scripts wrap the denoiser in DistributedDataParallel. The LoRA scripts do not run this way on a CPU, with
or without the plugin: accelerate wraps the frozen denoiser there, too. What they do is in tests/core/test_distributed.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from adtruns import assert_trained_with_adt

from tinyhost.run import CompletedRun, TinyRun

Cell = Callable[..., None]
Options = tuple[str | Path, ...]

TWO = {"launcher": "accelerate", "processes": 2, "timeout": 100}
ACCUMULATED = ("--gradient_accumulation_steps", "2")


def assert_trained_by_two(run: CompletedRun, turns: int) -> None:
    """As one process's run, and everything was written once."""
    assert_trained_with_adt(run, turns)
    assert run.log.count("accelerator device: ") == 2
    events = [json.loads(line)["event"] for line in (run.output_dir / "tiny-adt.jsonl").read_text().splitlines()]
    assert events == ["run"] + ["turn"] * turns


@pytest.mark.parametrize(
    ("script", "options", "turns"),
    [
        ("train_db.py", (), 3),
        ("train_db.py", ACCUMULATED, 6),
        ("fine_tune.py", ("--train_text_encoder",), 3),
        ("sdxl_train.py", ("--gradient_checkpointing",), 3),
        ("sdxl_train.py", ACCUMULATED, 6),
        ("sd3_train.py", ("--mixed_precision", "bf16"), 3),
        ("flux_train.py", ("--gradient_checkpointing", *ACCUMULATED), 6),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_full_fine_tuning_trains(
    run_tiny: TinyRun, adt_options: Options, script: str, options: Options, turns: int, cell: Cell
) -> None:
    cell(script, " ".join(["--num_processes 2", *map(str, options)]))
    run = run_tiny("--max_train_steps", "3", *adt_options, *options, script=script, **TWO)
    assert_trained_by_two(run, turns)
