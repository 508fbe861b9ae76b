"""`python -m adt_plugin cost`, its options as the host spells them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import toml
import torch
from pytest import CaptureFixture, MonkeyPatch
from safetensors.torch import save_file

from adt_plugin.__main__ import main
from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts
from adt_plugin.cost import cli
from adt_plugin.cost.cli import cost_main, cost_parser, notes, side_of, with_config_file, workload_of
from adt_plugin.cost.count import Peaks, Progress, counted
from adt_plugin.cost.workbench import Workload

COUNTED: dict[tuple[Workload, ADTConfig], Any] = {}


@pytest.fixture(autouse=True)
def counted_once(monkeypatch: MonkeyPatch) -> None:
    """A count follows from its arguments alone; it takes seconds, and these tests read what is said of it."""

    def found(workload: Workload, config: ADTConfig, progress: Progress) -> Any:
        if (workload, config) not in COUNTED:
            COUNTED[workload, config] = counted(workload, config, progress)
        return COUNTED[workload, config]

    monkeypatch.setattr(cli, "counted", found)


TINY_RUN = ["--model", "tiny", "--mixed_precision", "no", "--network_dim", "4", "--adt_disc_width", "16", "--adt_steps", "2"]


def test_a_count_of_the_options_given(capsys: CaptureFixture[str]) -> None:
    main(["cost", *TINY_RUN, "--adt_every", "4", "--max_train_steps", "300"])
    said = capsys.readouterr().out
    assert said.startswith("Tiny, 64x64, batch 1, LoRA of rank 4, gradient checkpointing, fp32")
    assert "a run of 300 steps, a turn every 4, over the plain one" in said
    assert "measured" not in said


def test_a_measurement_beside_it(capsys: CaptureFixture[str]) -> None:
    cost_main([*TINY_RUN, "--measure", "--device", "cpu", "--repeats", "1"])
    assert "one thread" in capsys.readouterr().out.splitlines()[2]


def test_a_run_is_read_from_its_toml_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    keys = {
        "data": {"resolution": "768,512", "train_batch_size": 2, "train_data_dir": "somewhere"},
        "network": {"network_module": "networks.lora", "network_dim": 8},
        "adt": {"adt": True, "adt_steps": 7},
    }
    path.write_text(toml.dumps(keys))
    given = with_config_file(cost_parser(), ["--config_file", str(path), "--train_batch_size", "3"])
    assert workload_of(given) == Workload("sd15", 640, 3, 8, False, "fp32")  # the host's defaults for what the file leaves out
    assert (given.adt_steps, given.max_train_steps) == (7, 1600)


def test_a_toml_without_a_network_module_is_full_fine_tuning(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(toml.dumps({"mixed_precision": "bf16", "gradient_checkpointing": True}))
    workload = workload_of(with_config_file(cost_parser(), ["--config_file", str(path)]))
    assert (workload.rank, workload.checkpointing, workload.dtype) == (0, True, "bf16")


@pytest.mark.parametrize(
    ("text", "side"), [("512", 512), ("512,512", 512), ("768,512", 640), ([768, 512], 640), (512, 512), ("0", 0)]
)
def test_resolutions(text: object, side: int) -> None:
    assert side_of(text) == side


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resolution", "big"], "--resolution needs a number or two with a comma"),
        (["--resolution", "500"], "--resolution must be a multiple of 64; got 500."),
        (["--adt_decode_crop", "30"], "--adt_decode_crop must be a multiple of 8"),
        (["--config_file", "missing.toml"], "missing.toml"),
        (["--max_train_steps", "0"], "--max_train_steps must be at least 1; got 0."),
        (["--measure", "--repeats", "0"], "--repeats must be at least 1; got 0."),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(options: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match="adt_plugin: ") as caught:
        cost_main(options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"mixed_precision": "fp8"}, "--mixed_precision must be one of no, fp16, bf16"),
        ({"resolution": [1, 2, 3]}, "--resolution needs"),
    ],
)
def test_a_wrong_value_of_the_toml_is_said_too(tmp_path: Path, key: dict[str, object], said: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(toml.dumps(key))
    with pytest.raises(SystemExit, match=said):
        cost_main(["--config_file", str(path)])


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--full", "--mixed_precision", "bf16"], "Counted as with --full_bf16"),
        (["--adt_memory", "auto"], "--adt_memory auto is counted as low"),
        (["--dataset_config", "data.toml"], "--dataset_config is not read"),
    ],
)
def test_what_a_count_takes_for_granted_is_said(options: list[str], note: str, capsys: CaptureFixture[str]) -> None:
    cost_main([*TINY_RUN, *options])
    assert note in capsys.readouterr().out
    cost_main(TINY_RUN)
    assert note not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "there", "rank"),
    [
        ({"network_dim": 8}, True, 32),  # as in sd-scripts, the file decides
        ({}, True, 32),
        ({}, False, 16),
        ({"network_dim": 8}, False, 8),
    ],
)
def test_a_run_that_goes_on_from_a_lora_is_counted_at_its_rank(
    tmp_path: Path, keys: dict[str, int], there: bool, rank: int
) -> None:
    path, weights = tmp_path / "run.toml", tmp_path / "lora.safetensors"
    if there:
        shapes = {"lora_unet_a.lora_down.weight": (16, 4), "lora_unet_b.lora_down.weight": (32, 4), "lora_unet_b.alpha": ()}
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, weights)
    path.write_text(
        toml.dumps({"network_module": "networks.lora", "dim_from_weights": True, "network_weights": str(weights)} | keys)
    )
    given = with_config_file(cost_parser(), ["--config_file", str(path), "--model", "sdxl"])
    workload = workload_of(given)
    assert workload.rank == rank
    said = any(f"Counted at rank {rank}" in note for note in notes(given, workload, ADTConfig(), {}))
    assert said == (not there)
    given = with_config_file(cost_parser(), ["--config_file", str(path), "--model", "sdxl", "--network_dim", "64"])
    assert workload_of(given).rank == 64  # beside the file, an option wins, and a file that was read is not called unreadable
    assert any("cannot be read" in note for note in notes(given, workload_of(given), ADTConfig(), {})) == (not there)


def given_by(tmp_path: Path, keys: dict[str, object], *options: str) -> argparse.Namespace:
    path = tmp_path / "run.toml"
    path.write_text(toml.dumps(keys))
    return with_config_file(cost_parser(), ["--config_file", str(path), *options])


def test_keys_that_change_what_is_needed_and_are_not_counted_are_named(tmp_path: Path) -> None:
    keys = {"fp8_base": True, "blocks_to_swap": 18, "optimizer_type": "Prodigy", "masked_loss": False}
    given = given_by(tmp_path, keys, "--model", "flux")
    said = [note for note in notes(given, workload_of(given), ADTConfig(), {"fp8_base": 10**9}) if "ot counted: " in note]
    assert said == ["\nNot counted: blocks_to_swap, optimizer_type. All figures here are of the same run without."]
    given = given_by(tmp_path, {"fp8_base": False, "blocks_to_swap": 0, "optimizer_type": "adamw"})
    assert not any("ot counted" in note for note in notes(given, workload_of(given), ADTConfig(), {}))


def test_what_is_counted_of_lighter_options_is_said(tmp_path: Path) -> None:
    given = given_by(tmp_path, {}, "--model", "flux", "--fp8_base")
    said = [note for note in notes(given, workload_of(given), ADTConfig(), {"fp8_base": 11 * 10**9}) if "fp8" in note]
    assert said == [
        "\nIn the peaks: fp8_base (11.0 GB less). Not counted of them: their time, and what is on its way between the memories."
    ]


def test_epochs_are_no_steps_without_the_data_set(tmp_path: Path) -> None:
    keys = {"max_train_epochs": 30, "network_module": "networks.lora"}

    def said(*options: str) -> list[str]:
        given = given_by(tmp_path, keys, *options)
        return [note for note in notes(given, workload_of(given), ADTConfig(), {}) if "max_train_epochs" in note]

    assert said() == [
        "\nmax_train_epochs says no number of steps without the data set: counted as 1600; --max_train_steps says how many."
    ]
    assert said("--max_train_steps", "2000") == []  # the default of a command line without a file is an answer, too
    keys |= {"max_train_steps": 500}  # which sd-scripts replaces
    assert "counted as 500" in said()[0]
    del keys["max_train_epochs"]
    assert said() == []


@pytest.mark.parametrize(
    ("key", "small"), [({"fused_backward_pass": True}, "perhaps"), ({"masked_loss": True}, "no"), ({}, "no")]
)
def test_no_card_is_called_too_small_for_what_was_left_out_of_the_count(
    tmp_path: Path, key: dict[str, bool], small: str, capsys: CaptureFixture[str], monkeypatch: MonkeyPatch
) -> None:
    huge = Peaks(10**11, 10**11, 1, 1)
    monkeypatch.setattr(cli, "counted", lambda *arguments: (Parts(1.0, 3.0, 1.0, 2.0, 1.0), huge))
    path = tmp_path / "run.toml"
    path.write_text(toml.dumps({"network_module": "networks.lora"} | key))
    cost_main(["--config_file", str(path), "--model", "tiny"])
    assert f"fits a card of: 8 GB {small}, 12 GB {small}, 16 GB {small}, 24 GB {small} (" in capsys.readouterr().out


def test_a_misspelt_key_of_the_toml_stops(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("adt_stepz = 3")
    with pytest.raises(SystemExit, match="did you mean adt_steps"):
        cost_main(["--config_file", str(path)])


def test_the_model_is_told_by_the_toml_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(toml.dumps({"pretrained_model_name_or_path": "models/sd_xl_base_1.0.safetensors"}))
    given = with_config_file(cost_parser(), ["--config_file", str(path)])
    assert (workload_of(given).model, given.told) == ("sdxl", "by pretrained_model_name_or_path")
    given = with_config_file(cost_parser(), ["--config_file", str(path), "--model", "sd3"])
    assert (workload_of(given).model, given.told) == ("sd3", "")


@pytest.mark.parametrize(("name", "note"), [("sd15", "Counted as Tiny, told by"), ("dreamshaper", "does not tell the model")])
def test_how_the_model_was_told_is_said(
    tmp_path: Path, name: str, note: str, capsys: CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adt_plugin.cost import models

    monkeypatch.setitem(models.MODELS, "sd15", models.MODELS["tiny"])
    path = tmp_path / "run.toml"
    path.write_text(toml.dumps({"pretrained_model_name_or_path": name, "network_module": "networks.lora"}))
    cost_main(["--config_file", str(path), "--adt_disc_width", "16", "--adt_steps", "2"])
    said = capsys.readouterr().out
    assert note in said and "fits a card of: 8 GB yes" in said and "on the disk: " in said
