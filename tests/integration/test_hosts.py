"""The smallest set of tests that runs on every version of sd-scripts that is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from adtruns import assert_same_weights, assert_trained_with_adt, rows

from tinyhost.run import TinyRun

Options = tuple[str | Path, ...]
TWO_STEPS = ("--max_train_steps", "2")

pytestmark = pytest.mark.every_host


@pytest.mark.parametrize("script", ["train_network.py", "sdxl_train.py"])
def test_a_lora_and_a_full_fine_tuning_train(
    run_tiny: TinyRun, adt_options: Options, script: str, cell: Callable[..., None]
) -> None:
    cell(script)
    assert_trained_with_adt(run_tiny(*TWO_STEPS, *adt_options, script=script), turns=2)


def test_looking_on_changes_no_bit(run_tiny: TinyRun, adt_options: Options) -> None:
    plain = run_tiny(*TWO_STEPS, "--network_dropout", "0.1", env={"ADT_PLUGIN_DISABLE": "1"})
    looking_on = run_tiny(*TWO_STEPS, "--network_dropout", "0.1", *adt_options, "--adt_weight", "0")
    assert_same_weights(plain, looking_on)
    assert len(rows(looking_on)) == 2
