"""The host's optimizers and the hooks around them, in real runs that `watch.py` takes notes of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adtruns import assert_trained_with_adt, host_mentions, observed, rows
from torch import Tensor

from tinyhost.models import HostModel
from tinyhost.run import SCRIPT, CompletedRun, TinyRun

WATCH = Path(__file__).with_name("watch.py")
Options = tuple[str | Path, ...]


@pytest.fixture
def watched(host_dir: Path, tiny_sd: HostModel, tiny_images: Path, adt_options: Options, tmp_path: Path) -> Any:
    """A run of four steps with `--adt`, and the notes of it: `watched("--network_dropout", "0.3")`."""

    def run(*options: str) -> tuple[CompletedRun, dict[str, Any]]:
        given = ("--max_train_steps", 4, *adt_options, *options)
        completed, notes = observed(WATCH, SCRIPT, given, host_dir, tiny_sd, tiny_images, tmp_path)
        assert_trained_with_adt(completed, turns=4)
        return completed, notes

    return run


@pytest.mark.parametrize(
    "options",
    [
        ("--network_dropout", "0.3", "--network_args", "rank_dropout=0.3", "module_dropout=0.3"),
        ("--network_module", "networks.dylora"),
    ],
    ids=["dropout of three kinds", "DyLoRA"],
)
def test_a_replayed_step_is_the_unrolled_one(watched: Any, options: tuple[str, ...]) -> None:
    """Both draw a network of their own at every call; a warm network, since a fresh LoRA gives zero whatever is dropped."""
    run, notes = watched(*options, "--adt_grad_steps", "2", "--learning_rate", "0.1")
    assert len(notes["replays"]) == sum(len(row["masked"]) for row in rows(run)) > 0
    assert max(notes["replays"]) < 1e-5  # rounding; another draw changes the output by 1e-3 and more


def test_the_clip_acts_on_the_sum(watched: Any) -> None:
    run, notes = watched("--max_grad_norm", "0.001")
    assert len(notes["stepped"]) == len(notes["clipped"]) == 4
    assert all(before > 0.001 and after == pytest.approx(0.001, rel=1e-3) for before, after in notes["clipped"])
    assert notes["stepped"] == pytest.approx([after for _, after in notes["clipped"]])


def weight_norms(lora: dict[str, Tensor]) -> list[float]:
    """Of every module's product, as the host measures it."""
    norms = []
    for name in (name.removesuffix(".lora_down.weight") for name in lora if name.endswith(".lora_down.weight")):
        down, up = (lora[f"{name}.lora_{side}.weight"].float().flatten(1) for side in ("down", "up"))
        norms.append(float((up @ down).norm() * lora[f"{name}.alpha"] / len(down)))
    return norms


@pytest.mark.parametrize("bound", [None, 0.05])
def test_weight_norms_are_bounded_after_every_step(run_tiny: TinyRun, adt_options: Options, bound: float | None) -> None:
    options = () if bound is None else ("--scale_weight_norms", str(bound))
    run = run_tiny("--max_train_steps", "3", "--learning_rate", "0.1", *adt_options, *options)
    assert_trained_with_adt(run, turns=3)
    largest = max(weight_norms(run.saved()))
    assert largest > 0.1 if bound is None else 0 < largest <= bound * 1.001


def test_a_schedule_free_optimizers_turn_sees_the_weights_to_train_with(watched: Any, host_dir: Path) -> None:
    """The host switches to the averaged weights around every saving, and back."""
    if not host_mentions(host_dir, "schedulefree"):
        pytest.skip("this version of sd-scripts has no schedule-free optimizers")
    run, notes = watched("--optimizer_type", "AdamWScheduleFree", "--save_every_n_steps", "1")
    assert len(notes["modes"]) == 4 and all(modes and all(modes) for modes in notes["modes"])
    assert len(notes["stepped"]) == 4 and all(norm > 0 for norm in notes["stepped"])
    assert len(list(run.output_dir.glob("tiny-step*.safetensors"))) == 4
