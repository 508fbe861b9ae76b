"""Rehearsals, and memory that runs out, in runs of the real host."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from adtruns import assert_same_weights, assert_trained_with_adt, rows

from adt_plugin.core.out_of_memory import TurnOutOfMemoryError
from adt_plugin.core.run import state
from adt_plugin.host.run import Run
from tinyhost.families import family_of
from tinyhost.models import TinyModel
from tinyhost.run import BUCKETS, SCRIPT, CompletedRun, TinyRun, host_arguments, host_environment, run_to_end

Options = tuple[str | Path, ...]
OBSERVER = Path(__file__).with_name("scarce.py")
DROPOUT = ("--network_dropout", "0.2", "--max_train_steps", "4")

ScarceRun = Callable[..., tuple[CompletedRun, list[tuple[int, list[int]]]]]


@pytest.fixture
def run_scarce(host_dir: Path, tiny_model: TinyModel, tiny_images: Path, adt_options: Options, tmp_path: Path) -> ScarceRun:
    """Run the host where memory is limited; the run, and the turns made before each rehearsal with the shape of its latents."""

    def run(
        *options: str | Path, scarce: str = "", script: str = SCRIPT, images: Path = tiny_images
    ) -> tuple[CompletedRun, list[tuple[int, list[int]]]]:
        if not (host_dir / script).is_file():
            pytest.skip(f"{host_dir.name} has no {script}")
        model = tiny_model(family_of(script))
        arguments = [*host_arguments(script, model, images, tmp_path), *adt_options, *options]
        environment = host_environment(model.family, tmp_path, hub_cache=model.tokenizers) | {"ADT_SCARCE": scarce}
        result = tmp_path / "rehearsed.json"
        command = [str(part) for part in (sys.executable, OBSERVER, result, script, *arguments)]
        completed = CompletedRun(*run_to_end(command, host_dir, environment, 400), tmp_path)
        assert result.exists(), completed.log
        return completed, [tuple(each) for each in json.loads(result.read_text())]

    return run


def test_rehearsals_change_no_bit_of_a_run(run_tiny: TinyRun, run_scarce: ScarceRun, adt_options: Options) -> None:
    plain = run_tiny(*DROPOUT, *adt_options)
    limited, rehearsed = run_scarce(*DROPOUT)
    assert [turns for turns, _ in rehearsed] == [0, 1]  # before the first turn, and when the optimizer has its moments
    assert_same_weights(plain, limited)
    for row, other in zip(rows(plain), rows(limited), strict=True):
        assert row == other


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "script",
    [
        SCRIPT,
        "flux_train_network.py",
        *(pytest.param(f"{name}_train_network.py", marks=SLOW) for name in ("sdxl", "sd3", "lumina", "anima", "hunyuan_image")),
    ],
)
def test_the_largest_bucket_is_rehearsed_first_and_changes_no_bit(
    script: str, run_tiny: TinyRun, run_scarce: ScarceRun, adt_options: Options, tiny_bucket_images: Path
) -> None:
    """Whichever bucket comes first: two images of 64x64 pixels lie in one, two of twice the size in the other."""
    options = (*DROPOUT[:2], "--max_train_steps", "3", "--train_batch_size", "2", *BUCKETS)
    plain = run_tiny(*options, *adt_options, script=script, images=tiny_bucket_images)
    limited, rehearsed = run_scarce(*options, script=script, images=tiny_bucket_images)
    sizes = [(shape[0], shape[2] * shape[3]) for _, shape in rehearsed]
    assert len(sizes) == 2 and set(sizes) == {max(sizes)} and max(sizes)[0] == 2
    _, _, height, width = rehearsed[0][1]
    assert {height, width} == {min(height, width), 2 * min(height, width)}
    assert_same_weights(plain, limited)


def test_a_turn_in_the_hosts_own_pass_is_rehearsed_and_changes_no_bit(
    run_tiny: TinyRun, run_scarce: ScarceRun, adt_options: Options
) -> None:
    """The optimizer steps inside that pass."""
    adafactor = ("--optimizer_type", "adafactor", "--optimizer_args", "relative_step=False", "scale_parameter=False")
    options = (*adafactor, "warmup_init=False", "--fused_backward_pass", "--max_grad_norm", "0", "--adt_memory", "auto")
    options += ("--gradient_checkpointing",)
    plain = run_tiny(*options, *adt_options, script="sdxl_train.py")
    limited, rehearsed = run_scarce(*options, script="sdxl_train.py")
    assert [turns for turns, _ in rehearsed] == [0, 1]
    assert_same_weights(plain, limited)


def test_auto_steps_down_and_trains(run_scarce: ScarceRun) -> None:
    run, _ = run_scarce("--max_train_steps", "3", "--adt_memory", "auto", scarce="unroll")
    assert_trained_with_adt(run, turns=3)
    assert " ".join(run.log.split()).count("it goes on with --adt_offload (now off).") == 1


def test_what_the_optimizer_was_told_of_a_turn_is_taken_back_before_its_state_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the run that goes on from there would tell it again."""
    done: list[str] = []

    def attempt() -> None:
        raise TurnOutOfMemoryError("replay", "CUDA out of memory.", False, "memory ran out")

    def kept(self: Run, step: int) -> str:
        done.append("saved")
        return "saved."

    monkeypatch.setattr(Run, "_kept", kept)
    monkeypatch.setattr(Run, "_way_out", lambda self: "")
    with pytest.raises(TurnOutOfMemoryError, match="saved"):
        object.__new__(Run)._in_memory(3, attempt, lambda: done.append("taken back"))
    assert done == ["taken back", "saved"]


def test_memory_that_runs_out_in_a_turn_ends_the_run_with_its_state_and_what_to_set(
    run_scarce: ScarceRun, run_tiny: TinyRun, adt_options: Options
) -> None:
    run, _ = run_scarce("--max_train_steps", "6", scarce="replay")
    assert run.returncode == 1 and len(rows(run)) == 2
    sentence = " ".join(run.stderr.split("adt_plugin: ")[1].split())
    assert sentence.startswith("memory ran out in a turn's stage 'replay' on latents (1, 4, 8, 8) (CUDA out of memory.")
    assert "set --adt_offload (now off)." in sentence and "--gradient_checkpointing" in sentence
    folder = run.output_dir / "tiny-adt-stopped-state"
    assert (folder / state.TENSORS).is_file() and str(folder).replace(" ", "") in sentence.replace(" ", "")
    resumed = run_tiny("--max_train_steps", "4", *adt_options, "--resume", folder).check()
    assert [row["turn"] for row in rows(resumed)][:1] == [3]
