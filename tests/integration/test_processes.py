"""Two processes of the real host: `accelerate launch --num_processes 2`, gloo on the CPU.

The full fine-tuning scripts wrap the denoiser in DistributedDataParallel. The LoRA scripts do not run this way on a CPU, with
or without the plugin: accelerate wraps the frozen denoiser there, too. What they do is in tests/core/test_distributed.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from adtruns import assert_trained_with_adt, rows, slow
from test_faults import with_broken_decoder

from adt_plugin.core.run import state
from tinyhost.models import HostModel
from tinyhost.run import CompletedRun, TinyRun

Cell = Callable[..., None]
Options = tuple[str | Path, ...]

TWO = {"launcher": "accelerate", "processes": 2, "timeout": 400}
ACCUMULATED = ("--gradient_accumulation_steps", "2")


def assert_trained_by_two(run: CompletedRun, turns: int) -> None:
    """As one process's run, and everything was written once."""
    assert_trained_with_adt(run, turns)
    assert run.log.count("accelerator device:") == 2
    events = [json.loads(line)["event"] for line in (run.output_dir / "tiny-adt.jsonl").read_text().splitlines()]
    assert events == ["run"] + ["turn"] * turns


@pytest.mark.parametrize(
    ("script", "options", "turns"),
    [
        slow("train_db.py", (), 3),
        ("train_db.py", ACCUMULATED, 6),
        slow("fine_tune.py", ("--train_text_encoder",), 3),
        slow("sdxl_train.py", ("--gradient_checkpointing",), 3),
        slow("sdxl_train.py", ACCUMULATED, 6),
        slow("sd3_train.py", ("--mixed_precision", "bf16"), 3),
        slow("flux_train.py", ("--gradient_checkpointing", *ACCUMULATED), 6),
        slow("train_db.py", ("--adt_memory", "fast"), 3),
        slow("sdxl_train.py", ("--adt_memory", "auto", "--ddp_static_graph", "--gradient_checkpointing"), 3),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_full_fine_tuning_trains(
    run_tiny: TinyRun, adt_options: Options, script: str, options: Options, turns: int, cell: Cell
) -> None:
    cell(script, " ".join(["--num_processes 2", *map(str, options)]))
    run = run_tiny("--max_train_steps", "3", *adt_options, *options, script=script, **TWO)
    assert_trained_by_two(run, turns)


@pytest.mark.slow
def test_a_run_of_two_processes_resumes(run_tiny: TinyRun, adt_options: Options) -> None:
    """sd-scripts saves the state in the first process alone, and loads it in both."""
    save = ("--save_state", "--save_every_n_steps", "2")
    first = run_tiny("--max_train_steps", "2", *save, *adt_options, script="train_db.py", **TWO)
    assert_trained_by_two(first, turns=2)
    folder = first.output_dir / "tiny-step00000002-state"
    run = run_tiny("--max_train_steps", "2", *adt_options, "--resume", folder, script="train_db.py", **TWO).check()
    assert [(row["turn"], row["step"], row["warmup"]) for row in rows(run)] == [(3, 2, False), (4, 3, False)]


@pytest.mark.slow
def test_two_processes_end_together_with_their_state_saved(
    run_tiny: TinyRun, adt_options: Options, tiny_sd: HostModel, tmp_path: Path
) -> None:
    options = ("--max_train_steps", "8", *adt_options, "--adt_max_bad_turns", "2")
    run = run_tiny(*options, script="train_db.py", model=with_broken_decoder(tiny_sd, tmp_path), **TWO)
    assert run.returncode == 1 and "2 turns in a row were not finite, first in decoded training images" in run.log
    assert len(rows(run)) == 2
    folder = run.output_dir / "tiny-adt-stopped-state"
    assert {state.TENSORS, "optimizer.bin", "random_states_0.pkl", "random_states_1.pkl"} <= {p.name for p in folder.iterdir()}


@pytest.mark.slow
def test_a_lora_on_two_processes_of_a_cpu_is_the_hosts_own_failure(run_tiny: TinyRun) -> None:
    """So that this page is read again when it no longer fails: accelerate wraps the frozen denoiser."""
    run = run_tiny("--max_train_steps", "1", env={"ADT_PLUGIN_DISABLE": "1"}, **TWO)
    assert run.returncode != 0 and "DistributedDataParallel is not needed" in run.log
