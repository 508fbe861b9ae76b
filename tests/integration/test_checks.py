"""Every combination that cannot work is refused in one sentence with the flag and the way out."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import pytest
import toml
import torch
from safetensors.torch import save_file

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.host import checks
from adt_plugin.host.entry import Entry
from adt_plugin.host.families import FAMILIES, FLUX, SD, SD3, SDXL, Family


def host_args(**changes: object) -> argparse.Namespace:
    defaults = {
        "output_dir": tempfile.gettempdir(),
        "learning_rate": 1e-4,
        "v_parameterization": False,
        "zero_terminal_snr": False,
        "max_train_steps": 1600,
        "max_train_epochs": None,
        "gradient_accumulation_steps": 1,
        "min_timestep": None,
        "max_timestep": None,
    }
    return argparse.Namespace(**defaults | changes)


def refused(monkeypatch: pytest.MonkeyPatch, config: ADTConfig, script: str = "train_network.py", **changes: object) -> str:
    monkeypatch.setattr("sys.argv", [f"/somewhere/sd-scripts/{script}"])
    with pytest.raises(ConfigError) as caught:
        checks.check_host_options(host_args(**changes), config)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_a_sound_run_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train_network.py"])
    assert checks.check_host_options(host_args(), ADTConfig()) is SD


@pytest.mark.parametrize("name", checks.REFUSED)
def test_a_host_option_that_cannot_be_combined(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert refused(monkeypatch, ADTConfig(), **{name: True}).startswith(f"--{name} cannot be combined with --adt, because it ")


@pytest.mark.parametrize(("name", "value"), checks.REFUSED_WITH_DEEPSPEED)
def test_what_deepspeed_spreads_beyond_optimizer_and_gradients(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    changes = {"zero_stage": 2, "offload_optimizer_device": None, "offload_param_device": None} | {name: value}
    message = refused(monkeypatch, ADTConfig(), deepspeed=True, **changes)
    assert message.startswith(f"--{name} {value} cannot be combined with --adt, because it ")
    assert checks.check_host_options(host_args(deepspeed=False, **changes), ADTConfig()) is SD  # of no effect then


@pytest.mark.parametrize("name", checks.ONE_PASS_ONLY)
def test_what_allows_one_backward_pass_is_given_it_by_auto_and_asks_for_it_otherwise(name: str) -> None:
    args = host_args(**{name: True})
    for memory in ("auto", "joined"):
        assert checks.with_memory(args, ADTConfig(memory=memory)) == ADTConfig(memory="joined")
    for memory in ("low", "fast"):
        with pytest.raises(ConfigError) as caught:
            checks.with_memory(args, ADTConfig(memory=memory))
        message = str(caught.value)
        assert message.startswith(f"--{name} ") and message.endswith("add --adt_memory joined, or auto.")
    assert checks.with_memory(host_args(), ADTConfig(memory="auto")) == ADTConfig(memory="auto")


@pytest.mark.parametrize("name", checks.SWAPS_BLOCKS)
def test_swapped_blocks_are_given_a_pass_for_every_step(name: str) -> None:
    args = host_args(**{name: 2})
    for memory in ("low", "auto"):
        assert checks.with_memory(args, ADTConfig(memory=memory)) == ADTConfig(memory=memory)
    for memory in ("fast", "joined"):
        with pytest.raises(ConfigError, match=f"^--{name} needs a backward pass .* add --adt_memory low, or auto.$"):
            checks.with_memory(args, ADTConfig(memory=memory))
    with pytest.raises(ConfigError, match=f"^--{name} needs .* and --fused_backward_pass steps .* leave one of them out.$"):
        checks.with_memory(host_args(**{name: 2, "fused_backward_pass": True}), ADTConfig(memory="auto"))


@pytest.mark.parametrize("name", checks.OTHER_TRAINERS)
def test_a_trainer_that_is_not_served(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    message = refused(monkeypatch, ADTConfig(), name)
    assert message.startswith(f"--adt does not work with {name}, only with train_network.py, fine_tune.py, ")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_served_trainer_finds_its_family(family: Family) -> None:
    assert all(checks.find_family(script) is family for script in family.scripts)


@pytest.mark.parametrize(
    ("script", "family"),
    [("my_train_network.py", SD), ("sdxl_train_v2.py", SDXL), ("sd3_train_edm.py", SD3), ("flux_train_lora.py", FLUX)],
)
def test_a_forks_own_trainer_is_taken_for_the_family_of_its_prefix(script: str, family: Family) -> None:
    assert checks.find_family(script) is family


@pytest.mark.parametrize(("low", "high"), [(950, None), (None, 1), (10, 90)])
def test_timesteps_that_the_grid_does_not_have(monkeypatch: pytest.MonkeyPatch, low: int | None, high: int | None) -> None:
    assert "--min_timestep" in refused(monkeypatch, ADTConfig(), min_timestep=low, max_timestep=high)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
@pytest.mark.parametrize("preserved", [True, False])
def test_images_are_weighed_if_a_data_sets_file_preserves_some(tmp_path: Path, preserved: bool, suffix: str) -> None:
    attributes = {"diff_output_preservation": preserved}
    settings = {"datasets": [{"resolution": 512, "subsets": [{"image_dir": "x", "custom_attributes": attributes}]}]}
    path = tmp_path / f"data{suffix}"
    path.write_text(json.dumps(settings) if suffix == ".json" else toml.dumps(settings))
    assert checks.weighs_images(host_args(dataset_config=str(path))) is preserved


def test_images_are_weighed_if_regularisation_images_have_a_weight_of_their_own() -> None:
    assert checks.weighs_images(host_args(prior_loss_weight=0.5))
    assert not checks.weighs_images(host_args(prior_loss_weight=1.0))
    assert not checks.weighs_images(host_args())


def test_a_data_sets_file_without_sense_is_the_hosts_affair(tmp_path: Path) -> None:
    path = tmp_path / "data.toml"
    path.write_text("not [ toml")
    assert not checks.weighs_images(host_args(dataset_config=str(path)))
    assert not checks.weighs_images(host_args(dataset_config=str(tmp_path / "none.toml")))


def test_a_place_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Found now: the host itself finds out when it saves, after the training."""
    (tmp_path / "file").touch()
    message = refused(monkeypatch, ADTConfig(), output_dir=str(tmp_path / "file" / "output"))
    assert message.startswith("--output_dir ") and "cannot be written (Not a directory)" in message


def test_a_new_place_is_made_and_left_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["train_network.py"])
    checks.check_host_options(host_args(output_dir=str(tmp_path / "new" / "output")), ADTConfig())
    assert list((tmp_path / "new" / "output").iterdir()) == []


def warnings_without_adt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *argv: str, **values: object
) -> str:
    monkeypatch.setattr("sys.argv", ["train_network.py", *argv])
    with caplog.at_level(logging.WARNING):
        Entry().start(host_args(adt=False, **values))
    return caplog.text


def test_options_without_the_switch_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """From the command line, also at its default; from a TOML, whose suffix the host takes off; from whatever else set them."""
    (tmp_path / "my.run.toml").write_text("[any]\nadt_every = 2\nlearning_rate = 1\n")
    text = warnings_without_adt(
        monkeypatch, caplog, "--adt_warmup=40", adt_weight=2.0, adt_every=2, adt_warmup=40, config_file=str(tmp_path / "my.run")
    )
    assert "adt_weight, adt_every, adt_warmup without --adt: this run trains without ADT" in text


def test_a_run_without_any_of_them_hears_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_without_adt(monkeypatch, caplog, adt_every=1, config_file="no/such/file") == ""


@pytest.mark.parametrize(
    ("name", "switch", "value"),
    [(name, switch, value) for name, (switch, values) in checks.CAPTURES_CALLS.items() for value in values],
)
def test_a_compiler_that_captures_cuda_graphs(monkeypatch: pytest.MonkeyPatch, name: str, switch: str, value: str) -> None:
    message = refused(monkeypatch, ADTConfig(), **{switch: True, name: value})
    assert message.startswith(f"--{name} {value} captures CUDA graphs") and message.endswith(f"leave --{name} at its default.")
    checks.check_host_options(host_args(**{switch: False, name: value}), ADTConfig())
    checks.check_host_options(host_args(**{switch: True, name: "eager"}), ADTConfig())


def test_no_place_for_rows_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--output_dir" in refused(monkeypatch, ADTConfig(), output_dir=None)


@pytest.mark.parametrize("given", [None, ["scale_parameter=False", "relative_step=True"]])
def test_a_rate_of_0_that_adafactor_asks_for(monkeypatch: pytest.MonkeyPatch, given: list[str] | None) -> None:
    monkeypatch.setattr("sys.argv", ["train_network.py"])
    changes = {"learning_rate": 0.0, "optimizer_type": "AdaFactor", "optimizer_args": given}
    assert checks.check_host_options(host_args(**changes), ADTConfig()) is SD
    changes["optimizer_args"] = ["relative_step=False"]
    assert "--learning_rate 0" in refused(monkeypatch, ADTConfig(), **changes)


@pytest.mark.parametrize("inside", [name for name, why in checks.ONE_PASS_ONLY.items() if why == checks.STEPS_INSIDE])
def test_checkpointing_with_passes_of_its_own_is_not_for_optimizers_that_step_inside(inside: str) -> None:
    with pytest.raises(ConfigError, match=f"--unsloth_offload_checkpointing pulls .* --{inside} would step"):
        checks.with_memory(host_args(**{inside: True, "unsloth_offload_checkpointing": True}), ADTConfig(memory="auto"))
    assert checks.with_memory(host_args(unsloth_offload_checkpointing=True), ADTConfig()) == ADTConfig()


@pytest.mark.parametrize(
    ("changes", "flag"), [({"unet_lr": 0.0}, "--unet_lr 0"), ({"learning_rate": 0.0}, "--learning_rate 0")]
)
def test_a_denoiser_that_stands_still(monkeypatch: pytest.MonkeyPatch, changes: dict[str, float], flag: str) -> None:
    assert refused(monkeypatch, ADTConfig(), **changes).startswith(flag)


def test_zero_terminal_snr_without_v_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--v_parameterization" in refused(monkeypatch, ADTConfig(), zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"steps": 7, "spacing": "trailing"}, "--adt_steps must divide"),
        ({"spacing": "linspace"}, "--adt_spacing"),
        ({"start_min": 0.12, "start_max": 0.18}, "--adt_start_min"),
    ],
)
def test_a_grid_that_cannot_be_walked(monkeypatch: pytest.MonkeyPatch, options: dict[str, object], flag: str) -> None:
    assert flag in refused(monkeypatch, ADTConfig(**options))


def test_a_warmup_that_outlasts_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, ADTConfig(warmup=100, every=2), max_train_steps=100)
    assert message.startswith("--adt_begin, --adt_warmup 100 and --adt_every 2 leave no turn of this run")
    assert message.endswith("lower --adt_warmup to 10, or train longer (the run ends at step 100).")


def test_a_first_turn_after_the_end_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, ADTConfig(warmup=100, every=150), max_train_steps=150)
    assert message.endswith("lower --adt_every to 12, or train longer (the run ends at step 150).")


def test_a_short_run_is_told_all_that_has_to_change_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, ADTConfig(every=50), max_train_steps=20)
    assert "lower --adt_warmup to 2 and --adt_every to 2, or train longer" in message
    assert checks.check_host_options(host_args(max_train_steps=20), ADTConfig(every=2, warmup=2)) is SD


def test_a_run_that_resumes_is_asked_when_its_state_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train_network.py"])
    checks.check_host_options(host_args(max_train_steps=80, resume="state"), ADTConfig(warmup=100))


@pytest.mark.parametrize("changes", [{"max_train_epochs": 3}, {"gradient_accumulation_steps": 2}, {"max_train_steps": 101}])
def test_a_warmup_within_the_run_passes(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]) -> None:
    monkeypatch.setattr("sys.argv", ["train_network.py"])
    checks.check_host_options(host_args(**{"max_train_steps": 100} | changes), ADTConfig(warmup=100, every=1))


def test_the_range_of_a_flow_model_is_checked_on_its_own_shifted_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """SD3's ten steps are 1000, 960, 913, ..., 465, 278, 9: none between 100 and 250, one between 940 and 990."""
    message = refused(monkeypatch, ADTConfig(steps=10), "sd3_train_network.py", min_timestep=100, max_timestep=250)
    assert "--min_timestep" in message and "960" in message
    checks.check_host_options(host_args(min_timestep=940, max_timestep=990), ADTConfig(steps=10))


def test_a_forks_trainer_without_the_usual_options_is_checked_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["hidream_train.py"])
    args = host_args()
    del args.v_parameterization, args.zero_terminal_snr
    assert checks.check_host_options(args, ADTConfig()) is SD


@pytest.mark.parametrize(
    ("part", "only", "said"),
    [("lora_te1_text_model", True, True), ("lora_te1_text_model", False, False), ("lora_unet_down", True, False)],
)
def test_a_lora_that_will_lose_its_part_for_text_encoders(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, part: str, only: bool, said: bool
) -> None:
    monkeypatch.setattr("sys.argv", ["train_network.py"])
    save_file({f"{part}.lora_up.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    args = host_args(network_weights=str(tmp_path / "a.safetensors"), network_train_unet_only=only)
    with caplog.at_level(logging.WARNING):
        checks.check_host_options(args, ADTConfig())
    assert ("--network_train_unet_only leaves out of what is saved" in caplog.text) is said
    (tmp_path / "a.safetensors").write_bytes(b"no weights")  # which sd-scripts says by itself
    assert checks.check_host_options(args, ADTConfig()) is SD
