"""`--save_state` and `--resume` of the real host, with the plugin on both sides, on one, and on the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adtruns import assert_same_weights, assert_trained_with_adt, rows
from safetensors.torch import load_file

from adt_plugin.core.run import state
from tinyhost.run import CompletedRun, TinyRun

Options = tuple[str | Path, ...]

TRAINERS = ("train_network.py", "fine_tune.py")
SAVE = ("--max_train_steps", "2", "--save_state", "--save_every_n_steps", "2")
RESUMED = ("--max_train_steps", "4", "--save_state", "--save_every_n_steps", "4")


def state_folder(run: CompletedRun, step: int) -> Path:
    return run.output_dir / f"tiny-step{step:08d}-state"


@pytest.fixture(scope="module", params=TRAINERS)
def saved(request: pytest.FixtureRequest, run_tiny: TinyRun, adt_options: Options) -> tuple[str, CompletedRun]:
    """A run of two turns and its state."""
    return request.param, run_tiny(*SAVE, *adt_options, script=request.param).check()


def test_the_state_lies_in_the_hosts_folder_and_says_how_far_the_run_came(saved: tuple[str, CompletedRun]) -> None:
    folder = state_folder(saved[1], 2)
    manifest = json.loads((folder / state.MANIFEST).read_text())
    assert (manifest["turns"], manifest["step"]) == (2, 2)
    tensors = load_file(folder / state.TENSORS)
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


def test_two_resumed_runs_are_the_same_and_go_on_counting(
    saved: tuple[str, CompletedRun], run_tiny: TinyRun, adt_options: Options
) -> None:
    script, first = saved
    resume = ("--resume", state_folder(first, 2))
    runs = [run_tiny(*RESUMED, *adt_options, *resume, script=script) for _ in range(2)]
    assert_same_weights(*runs)
    for run in runs:
        assert [row["turn"] for row in rows(run)][:2] == [3, 4]
        assert [row["step"] for row in rows(run)][:2] == [2, 3]
        assert not any(row["warmup"] for row in rows(run))
    last = [json.loads(next(run.output_dir.glob("tiny-step*-state/adt_state.json")).read_text()) for run in runs]
    assert last[0] == last[1] and last[0]["turns"] >= 4


def test_a_state_resumes_without_the_plugin(saved: tuple[str, CompletedRun], run_tiny: TinyRun) -> None:
    script, first = saved
    run = run_tiny("--max_train_steps", "4", "--resume", state_folder(first, 2), script=script, env={"ADT_PLUGIN_DISABLE": "1"})
    assert run.check().saved()


def test_a_state_without_the_plugins_files_starts_the_discriminator_anew(run_tiny: TinyRun, adt_options: Options) -> None:
    plain = run_tiny(*SAVE, env={"ADT_PLUGIN_DISABLE": "1"}).check()
    assert not (state_folder(plain, 2) / state.TENSORS).exists()
    run = run_tiny("--max_train_steps", "4", *adt_options, "--resume", state_folder(plain, 2)).check()
    assert "was saved without --adt: the discriminator starts anew" in " ".join(run.log.split())
    assert [row["turn"] for row in rows(run)][:1] == [1]


@pytest.mark.parametrize("fault", ["another discriminator", "a truncated file"])
def test_a_state_that_does_not_fit_ends_the_run_before_it_trains(run_tiny: TinyRun, adt_options: Options, fault: str) -> None:
    folder = state_folder(run_tiny(*SAVE, *adt_options).check(), 2)
    options: Options = ("--adt_disc_width", "64")
    said = "was saved with --adt_disc_width 256, this run has 64"
    if fault == "a truncated file":
        options, said = (), "is no whole discriminator state"
        whole = (folder / state.TENSORS).read_bytes()
        (folder / state.TENSORS).write_bytes(whole[: len(whole) // 2])
    run = run_tiny(*RESUMED, *adt_options, *options, "--resume", folder)
    assert run.returncode == 1 and said in run.stderr.split("adt_plugin: ")[1]
    assert not rows(run)


def test_a_discriminator_trained_elsewhere(
    saved: tuple[str, CompletedRun], run_tiny: TinyRun, adt_options: Options, tmp_path: Path
) -> None:
    folder = state_folder(saved[1], 2)
    run = run_tiny(*SAVE, *adt_options, "--adt_disc_weights", folder, "--adt_disc_lr", "0")
    assert_trained_with_adt(run, turns=2)
    first, second = (load_file(path / state.TENSORS) for path in (folder, state_folder(run, 2)))
    heads = [name for name in first if name.startswith(state.HEADS) and "standardize" not in name]
    assert heads and all(torch.equal(first[name], second[name]) for name in heads)
    wrong = run_tiny(*SAVE, *adt_options, "--adt_disc_weights", tmp_path / "none.safetensors")
    assert wrong.returncode == 1 and "adt_plugin: --adt_disc_weights: " in wrong.stderr


NO_TURNS = ("--adt_every", "1000", "--adt_weight", "0", "--adt_warmup", "0")
"""The resumed step is no multiple; with a weight of 0 the plugin does not ask for a turn."""


def test_the_restored_state_is_the_saved_one_tensor_for_tensor(
    saved: tuple[str, CompletedRun], run_tiny: TinyRun, adt_options: Options
) -> None:
    """A resumed run without a turn saves what it has restored; only the diffusion loss's norm has been watched on."""
    script, first = saved
    run = run_tiny(*RESUMED, *adt_options, *NO_TURNS, "--resume", state_folder(first, 2), script=script).check()
    assert not rows(run)
    last = next(run.output_dir.glob("tiny-step*-state"))
    before, after = (load_file(folder / state.TENSORS) for folder in (state_folder(first, 2), last))
    assert before.keys() == after.keys() and len(before) > 50
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"balance.diffusion.total", "balance.diffusion.correction"}
    manifests = [json.loads((folder / state.MANIFEST).read_text()) for folder in (state_folder(first, 2), last)]
    assert manifests[1]["turns"] == manifests[0]["turns"] == 2 and manifests[1]["step"] >= 4


def test_a_state_of_an_epoch_resumes(run_tiny: TinyRun, adt_options: Options) -> None:
    """Four images, each four times, in batches of four: an epoch has four steps."""
    epochs = ("--train_batch_size", "4", "--max_train_epochs", "2", "--save_every_n_epochs", "1", "--save_state")
    first = run_tiny(*epochs, *adt_options).check()
    folder = first.output_dir / "tiny-000001-state"
    assert json.loads((folder / state.MANIFEST).read_text())["turns"] == 4
    run = run_tiny(*epochs, *adt_options, "--resume", folder)
    assert run.check() and [(row["turn"], row["step"]) for row in rows(run)][:2] == [(5, 4), (6, 5)]


def test_the_last_states_are_kept_whole_and_the_others_removed(run_tiny: TinyRun, adt_options: Options) -> None:
    keep = ("--max_train_steps", "4", "--save_every_n_steps", "1", "--save_last_n_steps_state", "1", "--save_state")
    first = run_tiny(*keep, *adt_options).check()
    folders = sorted(first.output_dir.glob("tiny-step*-state"))
    assert 0 < len(folders) < 3 and not state_folder(first, 1).exists()
    turns = [json.loads((folder / state.MANIFEST).read_text())["turns"] for folder in folders]
    run = run_tiny("--max_train_steps", "6", *adt_options, "--resume", folders[-1]).check()
    assert rows(run)[0]["turn"] == turns[-1] + 1
