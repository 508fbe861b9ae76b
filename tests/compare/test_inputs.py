"""Prompt files, captions and training folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from adt_plugin.compare.inputs import NEUTRAL_PROMPTS, caption_prompts, neutral_prompts, read_prompts, read_references
from adt_plugin.compare.settings import NEUTRAL, SCORED, Prompt
from adt_plugin.core.errors import ConfigError


def test_a_prompt_file_of_sd_scripts_gives_prompts_and_negative_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# mine\na cat --n blurry, ugly --w 512 --d 1\n\na dog -- big\na dog -- big\n", encoding="utf-8")
    assert read_prompts(path, "--prompts", SCORED) == [Prompt("a cat", "blurry, ugly"), Prompt("a dog -- big")]


@pytest.mark.parametrize("content", [b"# nothing\n\n", b"\xff\xfe\x00"], ids=["no prompt", "not UTF-8"])
def test_a_prompt_file_without_prompts_is_refused_by_its_flag(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="^--prompts: "):
        read_prompts(path, "--prompts", SCORED)


def test_training_images_come_with_their_captions(tiny_images: Path) -> None:
    images = read_references(tiny_images)
    assert [image.path.name for image in images] == ["0.png", "1.png", "2.png", "3.png"]
    assert [image.caption for image in images][:2] == ["a red square", "a green disc"]
    assert [prompt.text for prompt in caption_prompts(images, 2)] == ["a red square", "a blue square"]


def test_a_folder_of_less_than_two_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--reference: .* holds 0 images"):
        read_references(tmp_path)
    with pytest.raises(ConfigError, match="--reference: there is no folder"):
        read_references(tmp_path / "none")


def test_without_captions_the_way_out_is_a_prompt_file(tiny_images: Path) -> None:
    images = [type(image)(image.path) for image in read_references(tiny_images)]
    with pytest.raises(ConfigError, match="give a text file by --prompts"):
        caption_prompts(images, 4)


def test_neutral_prompts_are_built_in_or_given_or_none(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("a chair", encoding="utf-8")
    assert [prompt.text for prompt in neutral_prompts("auto")] == list(NEUTRAL_PROMPTS)
    assert neutral_prompts(str(path)) == [Prompt("a chair", "", NEUTRAL)]
    assert neutral_prompts("none") == []
