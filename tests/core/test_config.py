"""The option table: parser, TOML values, ranges, metadata."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from adt_plugin import __version__
from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.options import LEVELS, TITLES, add_adt_arguments, from_namespace, metadata, option_names

CONTRACT = [
    "weight",
    "balance",
    "steps",
    "grad_steps",
    "grad_mask",
    "sampler",
    "start_min",
    "start_max",
    "every",
    "warmup",
    "backbone",
    "blocks",
    "disc_lr",
    "disc_betas",
    "disc_type",
    "augment",
    "image_size",
    "decode_dtype",
    "seed",
    "pictures_every",
]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_adt_arguments(parser)
    return parser


def parse(*arguments: str, **toml: object) -> ADTConfig:
    return from_namespace(parser().parse_args(arguments, namespace=argparse.Namespace(**toml)))


def test_the_names_that_were_promised_are_there() -> None:
    assert {f"adt_{name}" for name in CONTRACT} | {"adt"} <= set(option_names())


def test_without_options_the_parser_and_the_dataclass_agree() -> None:
    assert parse() == ADTConfig()


def test_the_switch_is_off_by_default() -> None:
    assert parser().parse_args([]).adt is False


def test_every_option_travels_from_the_command_line() -> None:
    config = parse(
        "--adt",
        "--adt_steps",
        "4",
        "--adt_weight",
        "0.25",
        "--adt_grad_mask",
        "even",
        "--adt_disc_betas",
        "0.5,0.9",
        "--adt_profile",
    )
    assert (config.steps, config.weight, config.grad_mask, config.beta_pair, config.profile) == (
        4,
        0.25,
        "even",
        (0.5, 0.9),
        True,
    )


def test_toml_values_of_another_type_are_converted() -> None:
    config = parse(adt_steps="4", adt_weight=1, adt_disc_betas=[0.0, 0.9], adt_blocks=[2, 4], adt_augment=["color", "shift"])
    assert (config.steps, config.weight, config.beta_pair) == (4, 1.0, (0.0, 0.9))
    assert (config.block_indices, config.augmentations) == ((2, 4), ("color", "shift"))


@pytest.mark.parametrize(("given", "scales"), [("3", (3.0, 3.0)), ("1:7", (1.0, 7.0)), ("2.5:2.5", (2.5, 2.5))])
def test_guidance_is_a_scale_or_a_range(given: str, scales: tuple[float, float]) -> None:
    assert parse("--adt_cfg_scale", given).guidance_scales == parse(adt_cfg_scale=given).guidance_scales == scales


def test_a_scale_is_a_number_of_toml_too() -> None:
    assert parse(adt_cfg_scale=3).guidance_scales == parse(adt_cfg_scale=3.0).guidance_scales == (3.0, 3.0)
    with pytest.raises(ConfigError, match="two with a colon"):
        parse(adt_cfg_scale=[1, 7])


def test_the_command_line_wins_over_toml() -> None:
    assert parse("--adt_steps", "3", adt_steps=7).steps == 3


@pytest.mark.parametrize(
    ("key", "nearest"), [("adt_step", "adt_steps"), ("adt_wieght", "adt_weight"), ("adt_sample", "adt_sampler")]
)
def test_an_unknown_toml_key_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown option {key}: did you mean {nearest}?"):
        parse(**{key: 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", -0.1),
        ("weight", float("nan")),
        ("steps", 0),
        ("steps", 1001),
        ("grad_steps", 0),
        ("start_min", 1.1),
        ("every", 0),
        ("warmup", -1),
        ("image_size", -1),
        ("disc_lr", 2.0),
        ("seed", -1),
        ("balance", "auto"),
        ("grad_mask", "first"),
        ("sampler", "euler_a"),
        ("disc_type", "patch"),
        ("decode_dtype", "fp16"),
        ("disc_betas", "0.9"),
        ("disc_betas", "0.9,1.0"),
        ("cfg_scale", 0.5),
        ("cfg_scale", 51),
        ("cfg_scale", "7:1"),
        ("cfg_scale", "1:nan"),
        ("cfg_scale", "1:"),
        ("cfg_scale", ":7"),
        ("cfg_scale", "1,7"),
        ("cfg_scale", "1:3:7"),
        ("blocks", "0,3"),
        ("blocks", "three"),
        ("augment", "color,flip"),
        ("backbone", ""),
    ],
)
def test_a_value_out_of_range_names_its_flag(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"--adt_{name}"):
        ADTConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "ten"), ("steps", 2.5), ("steps", True), ("weight", [1]), ("profile", "yes"), ("steps", float("inf"))],
)
def test_a_toml_value_of_a_wrong_type_names_its_flag(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"--adt_{name}"):
        parse(**{f"adt_{name}": value})


def test_crossed_starts_name_both_flags() -> None:
    with pytest.raises(ConfigError, match="--adt_start_min .* --adt_start_max"):
        ADTConfig(start_min=0.8, start_max=0.2)


def test_diversity_needs_scores_of_pairs():
    with pytest.raises(ConfigError, match="--adt_diversity .* --adt_disc_type unary .* siamese"):
        ADTConfig(diversity=10.0, disc_type="unary")
    assert ADTConfig(disc_type="unary").diversity == 0


def test_no_default_and_no_choice_contains_a_space() -> None:
    for spec in dataclasses.fields(ADTConfig):
        assert " " not in str(spec.default)
        assert not any(" " in choice for choice in spec.metadata["choices"])


def test_help_is_one_line_per_option_in_groups_by_who_needs_it() -> None:
    groups = {group.title: group._group_actions for group in parser()._action_groups}
    levels = [groups[title] for title, _ in TITLES.values()]
    assert [action.dest for action in levels[0]][:2] == ["adt", "adt_weight"] and len(levels[0]) == 1 + len(LEVELS["basic"])
    assert len(levels[1]) == len(LEVELS["advanced"])
    actions = [action for level in levels for action in level]
    assert sorted(action.dest for action in actions) == sorted(option_names())
    for action in actions:
        assert action.help and "\n" not in action.help and " / " in action.help
    assert "--adt_steps" in parser().format_help()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adt_stepss", "5"], "for --adt_stepss, did you mean --adt_steps?"),
        (["--adt_warm_up=5", "--adt_evry", "2"], "for --adt_evry, did you mean --adt_every?"),
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat 1\n"),
    ],
)
def test_a_misspelt_option_on_the_command_line_names_the_nearest(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error
    assert error.count("did you mean") == sum(word.startswith("--adt") for word in words)


def test_adding_the_options_twice_adds_them_once() -> None:
    twice = parser()
    add_adt_arguments(twice)
    assert len([action for action in twice._actions if action.dest == "adt"]) == 1


def test_metadata_hold_every_option_and_the_version_but_no_path(tmp_path: Path) -> None:
    backbone = tmp_path / "my_dino"
    backbone.mkdir()
    saved = metadata(ADTConfig(backbone=str(backbone)))
    assert set(saved) == {f"ss_{name}" for name in option_names() if name != "adt"} | {"ss_adt_version"}
    assert saved["ss_adt_version"] == __version__
    assert saved["ss_adt_backbone"] == "my_dino"
    assert not any(str(tmp_path) in value for value in saved.values())


@pytest.mark.parametrize("side", [7, 100, 257])
def test_a_crop_that_cuts_through_a_latent_names_the_flag(side: int) -> None:
    with pytest.raises(ConfigError, match=f"--adt_decode_crop must be a multiple of 8, such as 224 or 256; got {side}"):
        ADTConfig(decode_crop=side)


@pytest.mark.parametrize("name", ["backbone", "decoder", "disc_weights"])
def test_a_local_folder_appears_in_metadata_by_its_name_alone(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert metadata(ADTConfig(**{name: str(folder)}))[f"ss_adt_{name}"] == "mine"


def test_a_folder_after_a_scheme_appears_by_its_name_too(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert metadata(ADTConfig(backbone=f"timm:{tmp_path / 'mine'}"))["ss_adt_backbone"] == "timm:mine"
    assert metadata(ADTConfig(backbone="timm:vit_small"))["ss_adt_backbone"] == "timm:vit_small"
