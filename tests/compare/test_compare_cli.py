"""The command: from arguments to a page, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from adt_plugin.compare import cli, rendering
from adt_plugin.compare.cli import compare_main
from adt_plugin.compare.run import trained_with
from adt_plugin.compare.scores import METRICS
from adt_plugin.compare.settings import Sampling
from adt_plugin.core.errors import ConfigError
from benchmarks.beds.pictures import CAPTIONS
from tiny_compare import attention_layers, write_network
from tinyhost.models import HostModel, TinyModel

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL_SD = REPOSITORY / "tests" / "assets" / "small_sd" / "model"


@pytest.fixture
def arguments(tiny_sd: HostModel, tiny_lora: Path, tiny_images: Path, tiny_dino: Path, tmp_path: Path) -> list[str]:
    """A whole command: base and LoRA, captions as prompts, no neutral prompts."""
    return [
        *("--base", str(tiny_sd.checkpoint), "--lora", f"plain={tiny_lora}", "--reference", str(tiny_images)),
        *("--backbone", str(tiny_dino), "--out", str(tmp_path / "out"), "--drift_prompts", "none", "--device", "cpu"),
        *("--steps", "1,2", "--cfg", "1", "--seeds", "1", "--batch_size", "8"),
    ]


def test_a_command_leaves_a_page_a_picture_and_figures(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_main(arguments)
    shown = capsys.readouterr()
    out = tmp_path / "out"
    assert "16 images, 0 of them are there already, 16 to make." in shown.out
    assert f"Open {out / 'comparison.html'}" in shown.out and "images: 100%" in shown.err
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert [scope["title"] for scope in scores["scopes"]] == ["all together", "1 steps, guidance 1", "2 steps, guidance 1"]
    figures = scores["scopes"][0]["figures"]["plain"]
    assert set(figures) == {metric.name for metric in METRICS} - {"drift", "diversity"}
    assert figures["kid"]["low"] <= figures["kid"]["value"] <= figures["kid"]["high"]
    assert scores["settings"]["seeds"] == [1] and scores["settings"]["size"] == [64, 64]
    assert len(scores["candidates"][1]["sha256"]) == 64
    assert shown.out.splitlines()[2] == scores["verdict"]
    with Image.open(out / "grid.png") as picture:
        assert picture.width > 2 * 256
    assert (out / "comparison.html").read_text(encoding="utf-8").count("data:image/png;base64,") >= 16 + 8

    compare_main(arguments)
    assert "16 of them are there already, 0 to make." in capsys.readouterr().out


def test_ctrl_c_says_that_the_same_command_goes_on(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rendering, "_render", interrupt)
    with pytest.raises(SystemExit) as ended:
        compare_main(arguments)
    assert ended.value.code == 130
    assert "the same command goes on from there" in capsys.readouterr().out


WRONG = {
    "nothing to compare": (["--lora"], [], "there is nothing to compare with --base: add --lora"),
    "no base": ([], ["--base", "nowhere.safetensors"], "--base: there is no nowhere.safetensors"),
    "a name twice": ([], ["--checkpoint", "plain=x"], "two candidates are called plain"),
    "the base's name": ([], ["--lora", "base=x"], "two candidates are called base"),
    "no such LoRA": ([], ["--lora", "other=nowhere.safetensors"], "--lora other: there is no file nowhere.safetensors"),
    "no such VAE": ([], ["--vae", "nowhere"], "--vae: there is no nowhere"),
    "no tokenizers": ([], ["--tokenizer_cache_dir", "nowhere"], "--tokenizer_cache_dir: there is no folder nowhere"),
    "a size that cannot be": ([], ["--size", "60x64"], "--size 60x64: both sides must be multiples of 8"),
    "no prompts": ([], ["--prompts", "nowhere.txt"], "--prompts: nowhere.txt cannot be read"),
    "no training images": ([], ["--reference", "nowhere"], "--reference: there is no folder nowhere"),
    "a file for a folder": ([], ["--out", __file__], f"--out: {__file__} is a file: give a folder"),
    "no backbone": ([], ["--backbone", "./nowhere"], "--backbone: there is no folder ./nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_before_a_model_is_loaded(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    without, more, sentence = WRONG[case]
    for flag in without:
        at = arguments.index(flag)
        del arguments[at : at + 2]
    monkeypatch.setattr(rendering, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as ended:
        compare_main([*arguments, *more])
    assert str(ended.value.code).startswith(f"adt_plugin: {sentence}") and "\n" not in str(ended.value.code)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--lora", "a.safetensors"), ("--steps", "0"), ("--steps", "x"), ("--cfg", "0.5"), ("--seeds", "0"), ("--size", "64by64")],
)
def test_a_value_that_cannot_be_parsed_names_its_flag(
    arguments: list[str], capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        compare_main([*arguments, flag, value])
    assert ended.value.code == 2
    assert f"argument {flag}: expected " in capsys.readouterr().err


def test_defaults_are_those_of_the_family(tiny_model: TinyModel, arguments: list[str]) -> None:
    at = arguments.index("--cfg")
    del arguments[at : at + 2]
    parser = cli.compare_parser("adt compare")
    sd = cli.settings_of(parser.parse_args(arguments))
    assert (sd.samplings, sd.size, sd.dtype) == ((Sampling(1, 7.0), Sampling(2, 7.0)), (64, 64), "float32")
    arguments[1] = str(tiny_model("flux").checkpoint)
    flux = cli.settings_of(parser.parse_args(arguments))
    assert (flux.samplings[0], flux.size) == (Sampling(1, 3.5), (1024, 1024))
    assert cli.size("512") == (512, 512) and cli.size("512x768") == (512, 768)


def test_the_help_shows_an_example_and_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_main(["--help"])
    shown = capsys.readouterr().out
    assert "adt compare --base sd15.safetensors --lora plain=plain.safetensors" in shown
    for title in ("what is compared", "how it is sampled", "files beside the model", "the machine"):
        assert title in shown


def test_the_trained_tiny_sd_is_told_from_its_ruins(tmp_path: Path, tiny_dino: Path) -> None:
    """Its training images are its own samples: a LoRA of noise is farther from them than the base."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(SMALL_SD / "unet")
    noise = write_network(tmp_path / "noise.safetensors", attention_layers(unet), scale=1.0)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS), encoding="utf-8")
    shared = ["--base", str(SMALL_SD), "--backbone", str(tiny_dino), "--device", "cpu", "--drift_prompts", "none"]
    shared += ["--prompts", str(prompts), "--steps", "6", "--cfg", "1", "--seeds", "1", "--batch_size", "10"]
    reference = own_samples(tmp_path, [*shared, "--lora", f"noise={noise}"])
    compare_main(
        [
            *shared,
            "--lora",
            f"noise={noise}",
            "--first_seed",
            "50",
            "--reference",
            str(reference),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    figures = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))["scopes"][0]["differences"][0]
    assert figures["of"] == "noise" and figures["kid"]["low"] > 0


def own_samples(folder: Path, arguments: list[str]) -> Path:
    """A folder of the base's own images."""
    from adt_plugin.compare.rendering import Store, render_all
    from adt_plugin.compare.run import digests_of

    out = folder / "own"
    given = cli.compare_parser("adt compare").parse_args([*arguments, "--reference", str(folder), "--out", str(out)])
    settings = cli.settings_of(given)
    settings = replace(settings, candidates=settings.candidates[:1])
    store = Store(settings, digests_of(settings))
    render_all(store, lambda _: None)
    reference = folder / "reference"
    reference.mkdir()
    for number, shot in enumerate(settings.shots()):
        store.path(settings.candidates[0], shot).rename(reference / f"{number}.png")
    return reference


def test_the_page_says_how_a_network_was_trained(tmp_path: Path) -> None:
    save_file(
        {"lora_unet_x.alpha": torch.ones(1)}, tmp_path / "a.safetensors", {"ss_network_dim": "16", "ss_adt_weight": "5.0"}
    )
    save_file({"lora_unet_x.alpha": torch.ones(1)}, tmp_path / "b.safetensors", {"ss_network_dim": "None"})
    assert trained_with(tmp_path / "a.safetensors") == "network_dim 16, adt_weight 5.0"
    assert trained_with(tmp_path / "b.safetensors") == "the file does not say"


def test_a_broken_training_image_is_named_before_a_model_is_loaded(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    Image.new("RGB", (32, 32)).save(reference / "whole.png")
    (reference / "half.png").write_bytes((reference / "whole.png").read_bytes()[:60])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog", encoding="utf-8")
    monkeypatch.setattr(rendering, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as ended:
        compare_main([*arguments, "--reference", str(reference), "--prompts", str(prompts)])
    assert str(ended.value.code).startswith(f"adt_plugin: {reference / 'half.png'} cannot be read as an image")


def test_what_is_cut_off_is_on_the_page_in_the_terminal_and_in_the_figures(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tests' tokenizer knows letters only."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\n" + "many words " * 20, encoding="utf-8")
    compare_main([*arguments, "--prompts", str(prompts)])
    shown = capsys.readouterr()
    said = "1 of 2 prompts are longer than the 75 tokens that Stable Diffusion 1.x / 2.x reads here"
    assert (shown.out + shown.err).count("longer than the 75") == 1 and "truncated" not in shown.out + shown.err
    assert said in shown.out and said in (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert scores["cautions"][0].startswith(said) and scores["settings"]["max_token_length"] == 75

    compare_main([*arguments, "--prompts", str(prompts), "--max_token_length", "225"])
    assert "longer than" not in capsys.readouterr().out
    scores = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert scores["settings"]["max_token_length"] == 225


def test_flags_that_a_family_does_not_have(
    tiny_model: TinyModel, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = cli.compare_parser("adt compare")
    arguments[1] = str(tiny_model("flux").checkpoint)
    with pytest.raises(ConfigError, match="^--max_token_length is of SD and SDXL, .* leave it out"):
        cli.settings_of(parser.parse_args([*arguments, "--max_token_length", "225"]))
    arguments[1] = str(tiny_model("sdxl").checkpoint)
    assert cli.settings_of(parser.parse_args([*arguments, "--clip_skip", "2"])).clip_skip == 1
    assert "--clip_skip is left out: sd-scripts trains SDXL" in capsys.readouterr().out
