"""`--deepspeed` in real runs: ZeRO steps the optimizer inside the pass, which the turn shares, and the weights are the same.

On a CPU, with gloo. The host wants torchrun's environment, which a single process is given here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from adtruns import assert_same_weights, assert_trained_with_adt, relative_difference, rows
from test_faults import with_broken_decoder

from adt_plugin.core.run import state
from tinyhost.models import HostModel
from tinyhost.run import TinyRun, free_port

Cell = Callable[..., None]
Options = tuple[str | Path, ...]

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")

SGD = ("--optimizer_type", "SGD", "--learning_rate", "0.01")  # AdamW takes the sign of gradients that are rounding alone
ON_A_CPU = {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "false"}
TWO = {"launcher": "accelerate", "processes": 2, "timeout": 400}
DEEPSPEED_TWO = TWO | {"env": ON_A_CPU}


def zero(stage: int) -> Options:
    return ("--deepspeed", "--zero_stage", str(stage), "--adt_memory", "auto")


@pytest.fixture
def alone() -> dict[str, str]:
    """The environment of a single process."""
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    return ON_A_CPU | torchrun | {"MASTER_PORT": str(free_port())}


@pytest.mark.parametrize(
    ("script", "stages", "options"),
    [
        ("train_network.py", (1, 2), ("--gradient_accumulation_steps", "2", "--adt_lr", "0.5")),
        ("sdxl_train.py", (2,), ("--gradient_checkpointing",)),
        ("flux_train.py", (2,), ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(map(str, value)),
)
def test_the_weights_are_those_of_the_same_run_without_it(
    run_tiny: TinyRun,
    adt_options: Options,
    alone: dict[str, str],
    script: str,
    stages: tuple[int, ...],
    options: Options,
    cell: Cell,
) -> None:
    cell(script, f"--deepspeed --zero_stage {' and '.join(map(str, stages))}")
    options = ("--max_train_steps", "3", *SGD, *adt_options, *options)
    without = run_tiny(*options, "--adt_memory", "joined", script=script)
    idle = run_tiny(*options, "--adt_weight", "0", script=script)
    for stage in stages:
        run = run_tiny(*options, *zero(stage), script=script, env=alone)
        assert_trained_with_adt(run, turns=6 if "--gradient_accumulation_steps" in options else 3)
        assert relative_difference(without, run, idle) < 1e-3


def test_two_processes_train_as_with_distributed_data_parallel(run_tiny: TinyRun, adt_options: Options, cell: Cell) -> None:
    cell("flux_train.py", "--num_processes 2 --deepspeed --zero_stage 2")
    options = ("--max_train_steps", "3", *SGD, *adt_options)
    averaged = run_tiny(*options, "--adt_memory", "joined", script="flux_train.py", **TWO)
    idle = run_tiny(*options, "--adt_weight", "0", script="flux_train.py", **TWO)
    run = run_tiny(*options, *zero(2), script="flux_train.py", **DEEPSPEED_TWO)
    assert_trained_with_adt(run, turns=3)
    assert run.log.count("accelerator device:") == 2
    assert relative_difference(averaged, run, idle) < 1e-3


def test_a_lora_trains_in_two_processes_alike_in_both_stages(run_tiny: TinyRun, adt_options: Options, cell: Cell) -> None:
    """Without DeepSpeed the host itself trains no LoRA in two processes of a CPU (test_processes.py)."""
    cell("train_network.py", "--num_processes 2 --deepspeed --zero_stage 2")
    options = ("--max_train_steps", "3", *SGD, *adt_options)
    idle = run_tiny(*options, "--adt_weight", "0", *zero(2), **DEEPSPEED_TWO)
    first, second = (run_tiny(*options, *zero(stage), **DEEPSPEED_TWO) for stage in (1, 2))
    assert_trained_with_adt(second, turns=3)
    assert relative_difference(first, second, idle) < 1e-3


def test_without_a_gradient_no_bit_changes(run_tiny: TinyRun, adt_options: Options, alone: dict[str, str]) -> None:
    options = ("--max_train_steps", "2", "--network_dropout", "0.1")
    plain = run_tiny(*options, "--deepspeed", "--zero_stage", "2", env=alone | {"ADT_PLUGIN_DISABLE": "1"})
    looking_on = run_tiny(*options, *adt_options, *zero(2), "--adt_weight", "0", env=alone)
    assert_same_weights(plain, looking_on)


def test_its_loss_scaler_is_heeded(run_tiny: TinyRun, adt_options: Options, alone: dict[str, str], cell: Cell) -> None:
    """The kit lets a CPU have fp16. The scale is too high at first: that turn of the warm-up is made again."""
    cell("train_network.py", "--deepspeed --zero_stage 2 --mixed_precision fp16")
    options = ("--max_train_steps", "6", "--mixed_precision", "fp16", *adt_options)
    run = run_tiny(*options, *zero(2), env=alone | {"TINYHOST_FP16": str(2.0**40)}).check()
    assert all(tensor.isfinite().all() for tensor in run.saved().values())
    turns = rows(run)
    skipped = [row["turn"] for row in turns].count(1) - 1
    assert 0 < skipped < 4 and [row["turn"] for row in turns][skipped:] == list(range(1, 7 - skipped))
    assert not any(row["skipped"] for row in turns) and all(row["grad_norm"] > 0 for row in turns[skipped + 1 :])


def test_bf16_goes_on_from_a_state(run_tiny: TinyRun, adt_options: Options, alone: dict[str, str], cell: Cell) -> None:
    """The state is one on the way; that at the end fails in the plain host, since DeepSpeed's process group is gone."""
    cell("train_network.py", "--deepspeed --zero_stage 1 --mixed_precision bf16")
    options = (*adt_options, *zero(1), "--mixed_precision", "bf16")
    first = run_tiny("--max_train_steps", "3", "--save_state", "--save_every_n_steps", "2", *options, env=alone)
    folder = first.output_dir / "tiny-step00000002-state"
    assert {state.TENSORS, "pytorch_model"} <= {path.name for path in folder.iterdir()}
    run = run_tiny("--max_train_steps", "4", *options, "--resume", folder, env=alone)
    assert [(row["turn"], row["step"], row["warmup"]) for row in rows(run)][:2] == [(3, 2, False), (4, 3, False)]
    assert all(tensor.float().isfinite().all() for tensor in run.saved().values())


def test_two_processes_end_together_with_their_state_saved(
    run_tiny: TinyRun, adt_options: Options, tiny_sd: HostModel, tmp_path: Path
) -> None:
    options = ("--max_train_steps", "8", *adt_options, "--adt_max_bad_turns", "2", *zero(2))
    run = run_tiny(*options, model=with_broken_decoder(tiny_sd, tmp_path), **DEEPSPEED_TWO)
    assert run.returncode == 1 and "2 turns in a row were not finite, first in decoded training images" in run.log
    folder = run.output_dir / "tiny-adt-stopped-state"
    assert {state.TENSORS, "pytorch_model"} <= {path.name for path in folder.iterdir()}


def test_a_third_stage_is_refused_before_anything_is_loaded(run_tiny: TinyRun, adt_options: Options) -> None:
    run = run_tiny(*adt_options, *zero(3))
    assert run.returncode != 0 and "adt_plugin: --zero_stage 3 cannot be combined with --adt, because it" in run.log
    assert "preparing accelerator" not in run.log


def test_an_optimizer_in_the_computers_memory_trains(
    run_tiny: TinyRun, adt_options: Options, alone: dict[str, str], cell: Cell
) -> None:
    """DeepSpeed compiles an Adam of its own for it, which takes a minute once."""
    cell("train_network.py", "--deepspeed --zero_stage 2 --offload_optimizer_device cpu")
    options = ("--max_train_steps", "3", *adt_options, *zero(2), "--offload_optimizer_device", "cpu")
    assert_trained_with_adt(run_tiny(*options, env=alone, timeout=900), turns=3)
