"""Prompts and training images, read and checked before any model is loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import toml

from adt_plugin.compare.settings import NEUTRAL, Prompt
from adt_plugin.core.errors import ConfigError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption")

NEUTRAL_PROMPTS = (
    "a photo of a dog on a beach",
    "a bowl of fruit on a wooden table",
    "a red car parked in a city street",
    "a snowy mountain under a clear sky",
    "a portrait of an old man with a beard",
    "a cup of coffee beside an open book",
    "a watercolor painting of a sailing boat",
    "an astronaut standing in a wheat field",
)
"""Everyday things in several styles: what a fine-tune of something else should leave alone."""


@dataclass(frozen=True)
class TrainingImage:
    """An image of the reference folder, and its caption if it has one."""

    path: Path
    caption: str = ""


def read_references(folder: Path) -> list[TrainingImage]:
    """Return the images of a training folder, in its subfolders too, sorted by path.

    Raises:
        ConfigError: there are fewer than two.
    """
    if not folder.is_dir():
        raise ConfigError(f"--reference: there is no folder {folder}: give the folder of the training images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < 2:
        raise ConfigError(
            f"--reference: {folder} holds {len(paths)} images ({', '.join(IMAGE_SUFFIXES)}), at least 2 are needed."
        )
    return [TrainingImage(path, _caption(path)) for path in paths]


def _caption(path: Path) -> str:
    """Return the first line of the caption beside an image, or else the words of its folder; an empty string without either.

    A folder such as `10_sks cat` has repeats and words, with which sd-scripts trains images that have no caption.
    """
    for suffix in CAPTION_SUFFIXES:
        if (beside := path.with_suffix(suffix)).is_file():
            return next(iter(beside.read_text(encoding="utf-8", errors="replace").strip().splitlines()), "")
    repeats, _, words = path.parent.name.partition("_")
    return words.strip() if repeats.isdecimal() else ""


def read_prompts(path: Path, flag: str, purpose: str) -> list[Prompt]:
    """Return the prompts of a text file, one per line; lines that begin with # are left out.

    All three of sd-scripts' formats for sample prompts are read: .txt, .toml and .json. The negative prompt, `--n`, is obeyed;
    sizes, seeds, steps and scales are the command line's, since they are the same for all images.

    Raises:
        ConfigError: the file cannot be read, or holds no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag}: {path} cannot be read as UTF-8 text, one prompt per line ({error}).") from error
    if path.suffix.lower() in (".toml", ".json"):
        prompts = _listed(text, path, flag, purpose)
    else:
        lines = [line.strip() for line in text.splitlines()]
        prompts = [_prompt(line, purpose) for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"{flag}: {path} holds no prompt: write one per line.")
    return list(dict.fromkeys(prompts))


def _listed(text: str, path: Path, flag: str, purpose: str) -> list[Prompt]:
    """Return the prompts of sd-scripts' TOML, `[prompt]` with `[[prompt.subset]]`, or of its JSON, a list of objects.

    Raises:
        ConfigError: the file is none of these.
    """
    try:
        if path.suffix.lower() == ".toml":
            shared = toml.loads(text)["prompt"]
            rows = [{**shared, **subset} for subset in shared["subset"]]
        else:
            rows = json.loads(text)
        return [Prompt(str(row["prompt"]).strip(), str(row.get("negative_prompt") or "").strip(), purpose) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{flag}: {path} is not in sd-scripts' format of sample prompts ({type(error).__name__}: {error}): write one "
            "prompt per line into a .txt file."
        ) from error


def _prompt(line: str, purpose: str) -> Prompt:
    text, *options = re.split(r"\s--(?=[a-z]+\b)", line)
    negative = next((option[2:].strip() for option in options if option.startswith("n ")), "")
    return Prompt(text.strip(), negative, purpose)


def caption_prompts(images: list[TrainingImage], most: int) -> list[Prompt]:
    """Return up to `most` different captions of training images as prompts, spread over the folder.

    Raises:
        ConfigError: no image has a caption.
    """
    captions = list(dict.fromkeys(image.caption for image in images if image.caption))
    if not captions:
        raise ConfigError(
            "--reference has no captions to take prompts from, neither files beside the images nor folders such as 10_sks cat: "
            "give a text file by --prompts, one per line."
        )
    step = max(1, len(captions) // most)
    return [Prompt(caption) for caption in captions[::step][:most]]


def neutral_prompts(choice: str) -> list[Prompt]:
    """Return the prompts for the drift: the built-in ones for `auto`, none for `none`, else those of a file."""
    if choice == "none":
        return []
    if choice == "auto":
        return [Prompt(text, "", NEUTRAL) for text in NEUTRAL_PROMPTS]
    return read_prompts(Path(choice), "--drift_prompts", NEUTRAL)
