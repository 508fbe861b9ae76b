"""What allows one backward pass only, in real runs: the weights are those of the same optimizer with the turn's own passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adtruns import assert_same_weights, assert_trained_with_adt, relative_difference

from tinyhost.run import TinyRun

Cell = Callable[..., None]
Options = tuple[str | Path, ...]

ADAFACTOR = ("--optimizer_type", "adafactor", "--optimizer_args", "relative_step=False", "scale_parameter=False")
ADAFACTOR += ("warmup_init=False", "eps=(0.01,0.001)", "--learning_rate", "0.1")  # else rounding takes a zero gradient's sign
SGD = ("--optimizer_type", "SGD", "--learning_rate", "0.01")
UNCLIPPED = ("--max_train_steps", "3", "--max_grad_norm", "0")  # the fused optimizers clip each parameter by itself


@pytest.mark.parametrize(
    ("script", "optimizer", "fused"),
    [
        ("sdxl_train.py", (*ADAFACTOR, "--gradient_checkpointing"), ("--fused_backward_pass",)),
        ("sdxl_train.py", SGD, ("--fused_optimizer_groups", "4")),
        ("sd3_train.py", SGD, ("--blockwise_fused_optimizers",)),
        ("flux_train.py", (*SGD, "--gradient_checkpointing"), ("--blockwise_fused_optimizers",)),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_an_optimizer_that_steps_inside_the_pass_trains_as_it_does_after_it(
    run_tiny: TinyRun, adt_options: Options, script: str, optimizer: Options, fused: Options, cell: Cell
) -> None:
    """SDXL's checkpointing is reentrant by itself, and would step every parameter once for each call."""
    cell(script, " ".join(map(str, (*fused, "--adt_memory auto"))))
    options = (*UNCLIPPED, *adt_options, *optimizer)
    inside = run_tiny(*options, *fused, "--adt_memory", "auto", script=script)
    assert_trained_with_adt(inside, turns=3)
    after = run_tiny(*options, "--adt_memory", "low", script=script)
    idle = run_tiny(*options, "--adt_weight", "0", script=script)
    assert relative_difference(inside, after, idle) < 0.01


def test_they_are_refused_with_passes_of_the_turns_own(run_tiny: TinyRun, adt_options: Options) -> None:
    run = run_tiny(*adt_options, *ADAFACTOR, "--fused_backward_pass", script="sdxl_train.py")
    assert run.returncode != 0
    assert (
        "adt_plugin: --fused_backward_pass steps the optimizer inside the backward pass, so that the turn must share" in run.log
    )
    assert not list(run.output_dir.glob("*.safetensors"))


def test_turns_train_a_loras_text_encoder_only_if_asked(run_tiny: TinyRun, adt_options: Options, cell: Cell) -> None:
    """One pass changes nothing; what the text encoder learns from turns comes on top, in its own weights."""
    options = (*UNCLIPPED, *SGD, *adt_options)
    cell("train_network.py", "--adt_memory joined --adt_train_text_encoder")
    own, joined, trained = (
        run_tiny(*options, *more).check()
        for more in (
            ("--adt_memory", "low"),
            ("--adt_memory", "joined"),
            ("--adt_memory", "joined", "--adt_train_text_encoder", "--gradient_checkpointing"),
        )
    )
    idle = run_tiny(*options, "--adt_weight", "0").check()
    assert_trained_with_adt(trained, turns=3)
    assert relative_difference(own, joined, idle) < 0.01
    of_encoder = [name for name in own.saved() if name.startswith("lora_te") and "lora_up" in name]
    moved = {run: torch.cat([run.saved()[name].flatten() for name in of_encoder]) for run in (own, joined, trained)}
    turned = (moved[trained] - moved[joined]).norm() / moved[joined].norm()
    assert (moved[joined] - moved[own]).norm() / moved[joined].norm() < 0.01 * turned


@pytest.mark.parametrize("script", ["sdxl_train.py", "fine_tune.py"])
def test_turns_train_the_text_encoders_of_a_full_fine_tuning(
    run_tiny: TinyRun, adt_options: Options, script: str, cell: Cell
) -> None:
    options = ("--train_text_encoder", "--adt_memory", "auto", "--adt_train_text_encoder", "--gradient_checkpointing")
    cell(script, " ".join(options))
    assert_trained_with_adt(run_tiny("--max_train_steps", "2", *adt_options, *options, script=script), turns=2)


def test_one_pass_without_a_gradient_changes_no_bit(run_tiny: TinyRun, adt_options: Options) -> None:
    options = ("--max_train_steps", "2", "--network_dropout", "0.1")
    plain = run_tiny(*options, env={"ADT_PLUGIN_DISABLE": "1"})
    looking_on = run_tiny(*options, *adt_options, "--adt_weight", "0", "--adt_memory", "joined")
    assert_same_weights(plain, looking_on)
