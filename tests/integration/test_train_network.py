"""`train_network.py` of the real sd-scripts, unmodified, on a tiny Stable Diffusion 1.x."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adtruns import NUMBERS, assert_same_weights, assert_trained_with_adt, host_mentions, rows
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adt_plugin.core.run.strip import LINE, PANEL_LINES, SIDE
from adt_plugin.options import option_names
from tinyhost.models import HostModel
from tinyhost.run import BUCKETS, CompletedRun, TinyRun

STEPS = ("--max_train_steps", "4")


# One whole run, looked at from all sides


@pytest.fixture(scope="module")
def launched(run_tiny: TinyRun, adt_options: tuple[str | Path, ...], tmp_path_factory: pytest.TempPathFactory) -> CompletedRun:
    output = tmp_path_factory.mktemp("launched")
    run = run_tiny(*STEPS, *adt_options, "--logging_dir", output / "logs", launcher="accelerate", output_dir=output)
    return run.check()


def test_accelerate_launch_trains_saves_and_logs(launched: CompletedRun) -> None:
    assert_trained_with_adt(launched, turns=4)


def test_the_saved_file_says_what_it_was_trained_with_and_holds_no_discriminator(
    launched: CompletedRun, tiny_dino: Path
) -> None:
    metadata = launched.metadata()
    assert {f"ss_{name}" for name in option_names() if name != "adt"} <= set(metadata)
    assert (metadata["ss_adt_steps"], metadata["ss_adt_backbone"]) == ("4", tiny_dino.name)
    assert not any(str(tiny_dino.parent) in value for key, value in metadata.items() if key.startswith("ss_adt_"))
    assert all(name.startswith(("lora_unet_", "lora_te_")) for name in launched.saved())


def test_pictures_show_generated_beside_real_images(launched: CompletedRun) -> None:
    names = sorted(path.name for path in launched.output_dir.glob("*.png"))
    assert names == ["tiny-adt-000002.png", "tiny-adt-000004.png", "tiny-adt-progress.png"]
    with Image.open(launched.output_dir / names[0]) as picture:
        assert picture.size == (64, 2 * 64 + 3 * 14)
        assert len(picture.getcolors(maxcolors=10_000)) > 100


def test_one_image_is_followed_from_before_the_first_turn_on(launched: CompletedRun) -> None:
    """The training image, and what the model makes of it: at the beginning, and after turns 2 and 4."""
    with Image.open(launched.output_dir / "tiny-adt-progress.png") as strip:
        assert strip.size == (4 * SIDE, SIDE + PANEL_LINES * LINE + 4)  # the last one has the image's caption
        panels = [strip.crop((n * SIDE, PANEL_LINES * LINE + 4, (n + 1) * SIDE, strip.height)) for n in range(4)]
    assert len({panel.tobytes() for panel in panels}) == 4


def test_pictures_change_no_bit(launched: CompletedRun, run_tiny: TinyRun, adt_options: tuple[str | Path, ...]) -> None:
    without = run_tiny(*STEPS, *adt_options, "--adt_pictures_every", "0", launcher="accelerate")
    assert_same_weights(launched, without)
    assert not list(without.output_dir.glob("*.png"))


def test_the_progress_bar_shows_two_numbers(launched: CompletedRun) -> None:
    last = launched.log.rsplit("steps: 100%", 1)[1].split("]")[0]
    assert re.findall(r"adt/\w+(?==\d)", last) == ["adt/distance", "adt/loss_d"] and "avr_loss=" in last


def test_the_run_says_what_comes_when_the_warm_up_ends_and_what_has_been(launched: CompletedRun) -> None:
    log = " ".join(re.sub(r"\w+\.py:\d+", "", launched.log).split())  # the host's logger puts that at the end of a line
    sentences = ("ADT begins: 4 turns to come", "ADT: the warm-up is over; from turn 2 on", "ADT ends: 4 turns")
    assert sorted(map(log.index, sentences)) == list(map(log.index, sentences))
    assert "of which the first 1 train the discriminator alone; backbone" in log
    assert re.search(r"about \d+\.\d times as long as without --adt \(counted for Stable Diffusion 1\.5 at 512 pixels\)", log)
    assert re.search(r"The turns that train the model see \d images in all: .* 120 changed nothing, and 480 did\.", log)
    assert re.search(r"This turn took [\d.]+ s", log)
    assert re.search(r"ends: 4 turns took [\w. ]+, which made the run \d+\.\d\d times as long", log)
    assert log.count("ADT begins") == log.count("ADT ends") == 1


def test_the_tracker_has_the_numbers_and_the_pictures(launched: CompletedRun) -> None:
    events = EventAccumulator(str(next((launched.output_dir / "logs").rglob("events.out.tfevents.*")).parent))
    events.Reload()
    for name in NUMBERS:
        scalars = events.Scalars(f"adt/{name}")
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4]
    loss_d = [row["loss_d"] for row in rows(launched)]
    assert [scalar.value for scalar in events.Scalars("adt/loss_d")] == pytest.approx(loss_d)
    assert "loss/current" in events.Tags()["scalars"]
    assert len(events.Images("adt/pairs")) == 2
    assert len(events.Images("adt/progress")) == 3  # before the first turn, and after the second and the fourth
    starts = {f"adt/distance/start_{row['start']}" for row in rows(launched)}
    assert starts == {tag for tag in events.Tags()["scalars"] if tag.startswith("adt/distance/")}


def test_the_lora_loads_in_the_host(launched: CompletedRun, run_tiny: TinyRun) -> None:
    run = run_tiny("--network_weights", launched.output_dir / "tiny.safetensors", "--max_train_steps", "1").check()
    assert "All keys matched successfully" in run.log


def test_the_lora_loads_in_diffusers(launched: CompletedRun, tiny_sd: HostModel) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd.checkpoint, safety_checker=None, requires_safety_checker=False)
    latents, embeds = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 32)
    plain = pipeline.unet(latents, 10, embeds).sample
    pipeline.load_lora_weights(launched.output_dir, weight_name="tiny.safetensors")
    assert not torch.allclose(pipeline.unet(latents, 10, embeds).sample, plain)


# The recommended use: a LoRA that is there already is finished


def test_a_lora_is_finished_under_another_name_at_its_own_rank(
    run_tiny: TinyRun, adt_options: tuple[str | Path, ...], tmp_path: Path
) -> None:
    """As the README says it: the first run's command, whose `--network_dim` the file's own rank takes the place of."""
    run_tiny("--network_dim", "6", "--network_alpha", "3", output_dir=tmp_path).check()
    first = tmp_path / "tiny.safetensors"
    before = first.read_bytes()
    finish = ("--network_weights", first, "--dim_from_weights", *STEPS, "--adt_warmup", "2", "--output_name", "other")
    finished = run_tiny("--network_dim", "4", *adt_options, *finish, output_dir=tmp_path)
    assert_trained_with_adt(finished, turns=4, name="other")
    assert [(row["step"], row["warmup"]) for row in rows(finished, "other")] == [(0, True), (1, True), (2, False), (3, False)]
    assert first.read_bytes() == before
    old, new = finished.saved(), finished.saved("other.safetensors")
    assert {name: tensor.shape for name, tensor in new.items()} == {name: tensor.shape for name, tensor in old.items()}
    assert {len(tensor) for name, tensor in new.items() if name.endswith("lora_down.weight")} == {6}
    assert {float(tensor) for name, tensor in new.items() if name.endswith(".alpha")} == {3.0}
    moved = {name: float((new[name] - old[name]).abs().max()) for name in old}
    assert 0 < max(moved.values()) < 0.01, "four steps away from the first file, and not a network that begins at random"
    assert {name.split("_")[1] for name, far in moved.items() if far > 0} == {"unet", "te"}


# Off is off, and looking on changes nothing


@pytest.fixture(scope="module")
def plain_run(run_tiny: TinyRun) -> CompletedRun:
    """The plugin as good as uninstalled; network dropout draws from the global generators at every step."""
    return run_tiny(*STEPS, "--network_dropout", "0.1", env={"ADT_PLUGIN_DISABLE": "1"}).check()


def test_an_idle_plugin_changes_no_bit(run_tiny: TinyRun, plain_run: CompletedRun) -> None:
    idle = run_tiny(*STEPS, "--network_dropout", "0.1")
    assert_same_weights(idle, plain_run)
    assert not any(key.startswith("ss_adt") for key in idle.metadata())
    assert not list(idle.output_dir.glob("*adt*"))


def test_weight_zero_looks_on_and_changes_no_bit(
    run_tiny: TinyRun, plain_run: CompletedRun, adt_options: tuple[str | Path, ...]
) -> None:
    looking_on = run_tiny(*STEPS, "--network_dropout", "0.1", *adt_options, "--adt_weight", "0")
    assert_same_weights(looking_on, plain_run)
    assert [row["grad_norm"] for row in rows(looking_on)] == [0.0] * 4
    assert len(list(looking_on.output_dir.glob("*-adt-0*.png"))) == 2


def test_with_a_weight_the_result_is_another(
    run_tiny: TinyRun, plain_run: CompletedRun, adt_options: tuple[str | Path, ...]
) -> None:
    trained = run_tiny(*STEPS, "--network_dropout", "0.1", *adt_options)
    assert_trained_with_adt(trained, turns=4)
    with pytest.raises(AssertionError):
        assert_same_weights(trained, plain_run)
    again = run_tiny(*STEPS, "--network_dropout", "0.1", *adt_options)
    assert_same_weights(again, trained)


# What users combine it with

COMBINATIONS = {
    "cached latents": ("--cache_latents",),
    "gradient checkpointing": ("--gradient_checkpointing", "--cache_latents"),
    "accumulation": ("--gradient_accumulation_steps", "2", "--max_train_steps", "2"),
    "u-net only": ("--network_train_unet_only",),
    "bf16": ("--mixed_precision", "bf16", "--adt_decode_dtype", "bf16"),
    "v-prediction with zero terminal SNR": ("--v_parameterization", "--zero_terminal_snr", "--adt_sampler", "dpm++"),
    "euler, even mask": ("--adt_sampler", "euler", "--adt_grad_mask", "even", "--adt_balance", "ratio"),
    "unary, all steps": ("--adt_disc_type", "unary", "--adt_grad_mask", "all", "--adt_balance", "none"),
    "two images a batch": ("--train_batch_size", "2"),
    "schedule-free": ("--optimizer_type", "AdamWScheduleFree"),
    "dropout of whole modules": ("--network_args", "module_dropout=0.5", "rank_dropout=0.1"),
}


@pytest.mark.parametrize("options", COMBINATIONS.values(), ids=COMBINATIONS)
def test_combinations_train(
    run_tiny: TinyRun, adt_options: tuple[str | Path, ...], options: tuple[str, ...], host_dir: Path, cell: Callable[..., None]
) -> None:
    cell("train_network.py", " ".join(options))
    if "AdamWScheduleFree" in options and not host_mentions(host_dir, "schedulefree"):
        pytest.skip("this version of sd-scripts has no schedule-free optimizers")
    assert_trained_with_adt(run_tiny(*STEPS, *adt_options, *options), turns=4)


def test_fp16_trains_once_the_loss_scaler_has_found_its_scale(
    run_tiny: TinyRun, adt_options: tuple[str | Path, ...], cell: Callable[..., None]
) -> None:
    """The kit steps over accelerate's refusal. The scale is too high at first: that turn of the warm-up is made again."""
    cell("train_network.py", "--mixed_precision fp16")
    options = ("--mixed_precision", "fp16", "--max_train_steps", "6")
    run = run_tiny(*STEPS, *adt_options, *options, env={"TINYHOST_FP16": str(2.0**30)}).check()
    assert all(tensor.isfinite().all() for tensor in run.saved().values())
    turns = rows(run)
    numbers = [row["turn"] for row in turns]
    skipped = numbers.count(1) - 1
    assert len(turns) == 6 and 0 < skipped < 4 and numbers[skipped:] == list(range(1, 7 - skipped))
    assert [row["warmup"] for row in turns] == [number == 1 for number in numbers]
    assert not any(row["skipped"] for row in turns) and all(row["grad_norm"] > 0 for row in turns if row["turn"] > 1)


def test_two_aspect_ratios_through_the_launcher_module(
    run_tiny: TinyRun, adt_options: tuple[str | Path, ...], tiny_bucket_images: Path
) -> None:
    run = run_tiny(
        *STEPS,
        *BUCKETS,
        "--cache_latents",
        *adt_options,
        "--adt_pictures_every",
        "1",
        images=tiny_bucket_images,
        launcher="accelerate-module",
    )
    assert_trained_with_adt(run, turns=4)
    sizes = set()
    for path in run.output_dir.glob("*-adt-0*.png"):
        with Image.open(path) as picture:
            sizes.add(picture.size)
    assert sizes <= {(64, 170), (128, 170)} and len(sizes) == 2


def test_a_turn_every_second_step(run_tiny: TinyRun, adt_options: tuple[str | Path, ...]) -> None:
    run = run_tiny(*STEPS, *adt_options, "--adt_every", "2")
    assert_trained_with_adt(run, turns=2)
    assert [row["step"] for row in rows(run)] == [0, 2]


def test_only_trained_timesteps_carry_gradient(run_tiny: TinyRun, adt_options: tuple[str | Path, ...]) -> None:
    """The grid is 751, 501, 251, 1: position 2 from a start of 4 is the only one in the range."""
    options = ("--min_timestep", "200", "--max_timestep", "400", "--adt_start_min", "1", "--adt_grad_mask", "all")
    run = run_tiny(*STEPS, *adt_options, *options)
    assert_trained_with_adt(run, turns=4)
    assert [row["masked"] for row in rows(run)] == [[], [2], [2], [2]]


def test_validation_batches_start_no_turn(run_tiny: TinyRun, adt_options: tuple[str | Path, ...], host_dir: Path) -> None:
    if "--validation_split" not in (host_dir / "train_network.py").read_text():
        pytest.skip("this version of sd-scripts has no validation")
    run = run_tiny(*STEPS, *adt_options, "--validation_split", "0.5", "--validate_every_n_steps", "1", "--validation_seed", "1")
    assert_trained_with_adt(run, turns=4)
    assert "validation steps" in run.log


def test_stages_are_timed_on_demand(run_tiny: TinyRun, adt_options: tuple[str | Path, ...]) -> None:
    run = run_tiny(*STEPS, *adt_options, "--adt_profile")
    assert set(rows(run)[-1]["seconds"]) == {"unroll", "decode", "observe", "gradient", "replay", "discriminator", "host"}


# TOML and errors


def write_toml(folder: Path, **keys: object) -> Path:
    import toml

    path = folder / "adt.toml"
    path.write_text(toml.dumps({"adversarial": keys}))
    return path


def test_options_come_from_a_toml_file_and_the_command_line_wins(run_tiny: TinyRun, tiny_dino: Path, tmp_path: Path) -> None:
    config = write_toml(
        tmp_path,
        adt=True,
        adt_backbone=str(tiny_dino),
        adt_image_size=56,
        adt_steps=6,
        adt_begin=0,
        adt_warmup=1,
        adt_blocks=[2, 4],
    )
    run = run_tiny(*STEPS, "--config_file", config, "--adt_steps", "3")
    assert_trained_with_adt(run, turns=4)
    assert (run.metadata()["ss_adt_steps"], run.metadata()["ss_adt_blocks"]) == ("3", "2,4")


def assert_stopped_before_models(run: CompletedRun, sentence: str) -> None:
    assert run.returncode == 1
    assert f"adt_plugin: {sentence}" in run.stderr
    assert "Traceback" not in run.stderr.split("adt_plugin:")[0]
    assert "pretrained models" not in run.log and not list(run.output_dir.glob("tiny*"))


def test_an_unknown_toml_key_stops_the_run_even_without_the_switch(run_tiny: TinyRun, tmp_path: Path) -> None:
    run = run_tiny("--config_file", write_toml(tmp_path, adt_stepz=6))
    assert_stopped_before_models(run, "unknown option adt_stepz: did you mean adt_steps?")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--adt_steps", "0"), "--adt_steps must be from 1 to 1000, got 0."),
        (("--adt_backbone", "no/such"), "--adt_backbone no/such could not be loaded"),
        (("--network_train_text_encoder_only",), "--network_train_text_encoder_only cannot be combined with --adt"),
    ],
)
def test_a_wrong_value_stops_the_run_in_one_sentence(run_tiny: TinyRun, options: tuple[str, ...], sentence: str) -> None:
    assert_stopped_before_models(run_tiny("--adt", "--adt_begin", "0", "--adt_warmup", "0", *options), sentence)


def test_a_trainer_of_another_kind_is_refused_by_name(run_tiny: TinyRun, tiny_sd: HostModel) -> None:
    run = run_tiny("--adt", "--token_string", "x", script="train_textual_inversion.py", model=tiny_sd)
    assert_stopped_before_models(run, "--adt does not work with train_textual_inversion.py, only with train_network.py")
