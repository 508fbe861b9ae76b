"""Prompt files, captions and training folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

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


def test_images_without_a_caption_have_the_words_of_their_folder(tmp_path: Path) -> None:
    """As sd-scripts trains them; whatever kind of image they are. A folder without repeats has no words."""
    folders = {name: tmp_path / name for name in ("10_sks cat", "plain")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("a.webp", "b.jpg", "c.bmp", "D.PNG", "e.jpeg"):
        Image.new("RGB", (16, 16)).save(folders["10_sks cat"] / name)
    (folders["10_sks cat"] / "b.txt").write_text("a photo of sks cat\nsecond line", encoding="utf-8")
    Image.new("RGB", (16, 16)).save(folders["plain"] / "f.png")
    captions = {image.path.name: image.caption for image in read_references(tmp_path)}
    assert captions == {"b.jpg": "a photo of sks cat", "f.png": ""} | dict.fromkeys(
        ("a.webp", "c.bmp", "D.PNG", "e.jpeg"), "sks cat"
    )
    inside = read_references(folders["10_sks cat"])
    assert {image.caption for image in inside} == {"sks cat", "a photo of sks cat"}


LISTED = {
    "p.toml": '[prompt]\nwidth = 512\nnegative_prompt = "blurry"\n[[prompt.subset]]\nprompt = "a cat"\n'
    '[[prompt.subset]]\nprompt = "a dog"\nnegative_prompt = "ugly"\n',
    "p.json": '[{"prompt": "a cat", "negative_prompt": "blurry", "seed": 1}, {"prompt": "a dog", "negative_prompt": "ugly"}]',
}


@pytest.mark.parametrize("name", LISTED)
def test_sd_scripts_other_formats_of_sample_prompts_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LISTED[name], encoding="utf-8")
    assert read_prompts(path, "--prompts", SCORED) == [Prompt("a cat", "blurry"), Prompt("a dog", "ugly")]


@pytest.mark.parametrize(("name", "content"), [("p.toml", "a cat"), ("p.toml", "[general]"), ("p.json", '{"a": 1}')])
def test_another_toml_or_json_is_refused_by_its_flag(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="^--prompts: .* is not in sd-scripts' format of sample prompts .* into a .txt file"):
        read_prompts(path, "--prompts", SCORED)
