"""A LoRA that was trained, on the small Stable Diffusion: the comparison tells whose style the training images have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from adt_plugin.compare.cli import compare_main
from adt_plugin.demo.data import Digits, load_splits
from benchmarks.beds.pictures import CAPTIONS
from benchmarks.beds.small_sd import ASSETS, rendered
from benchmarks.host_training import PLATEAU, save_image
from browser import browse, places

REFERENCES, SEEDS = 30, 2
Compared = Callable[[str], Path]

TOLD = {"paper": ("lora", "base"), "night": ("base", "lora")}
"""Style of the training images -> who is nearer, and who is not: the LoRA has learnt `paper`, the base knows `night`."""


def write_references(folder: Path, style: str) -> Path:
    """Write digits of a style that no training saw, with their captions."""
    unseen = load_splits().heldout
    images, labels = rendered(Digits(unseen.images[:REFERENCES], unseen.labels[:REFERENCES]), style, 1, seed=0)
    folder.mkdir()
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        save_image(image, folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(CAPTIONS[label], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """What the comparison with training images of a style has written; the generated images are made once for both."""
    folder = tmp_path_factory.mktemp("trained")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS), encoding="utf-8")

    @cache
    def compare(style: str) -> Path:
        compare_main(
            [
                *("--base", str(ASSETS / "model"), "--lora", f"lora={PLATEAU}", "--backbone", str(ASSETS / "dinov2")),
                *("--reference", str(write_references(folder / style, style)), "--prompts", str(prompts)),
                *("--drift_prompts", "none", "--device", "cpu", "--steps", "5", "--cfg", "3", "--seeds", str(SEEDS)),
                *("--batch_size", "10", "--out", str(folder / "out")),
            ]
        )
        kept = folder / f"{style}-written"
        return shutil.copytree(folder / "out", kept, ignore=shutil.ignore_patterns("images"))

    return compare


def scores_of(out: Path) -> dict[str, Any]:
    """What a comparison has written."""
    found: dict[str, Any] = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("style", TOLD)
def test_the_verdict_says_whose_style_the_training_images_have(compared: Compared, style: str) -> None:
    scores, (near, far) = scores_of(compared(style)), TOLD[style]
    assert f"{near} comes nearest to the training images" in scores["verdict"]
    assert f"{far}, the next, is " in scores["verdict"] and "more than the choice of images explains" in scores["verdict"]
    figures = scores["scopes"][0]["figures"]
    for figure, better in (("kid", min), ("fd", min), ("similarity", max)):
        assert better(figures, key=lambda name: figures[name][figure]["value"]) == near, figure  # noqa: B023


def test_a_browser_shows_the_page_that_the_command_wrote(compared: Compared, browser: str, tmp_path: Path) -> None:
    out, window, shot = compared("paper"), "--window-size=1200,7000", tmp_path / "page.png"
    scores, written = scores_of(out), out / "comparison.html"
    (verdict,) = places(browser, written, tmp_path, "#verdict .lead", window)
    assert verdict.text == scores["verdict"]
    names = places(browser, written, tmp_path, ".figures tbody th", window)
    assert [name.text for name in names] == ["base", "lora"]
    browse(browser, written, tmp_path, window, f"--screenshot={shot}")
    base, lora = (shown(browser, written, tmp_path, shot, name, window) for name in ("base", "lora"))
    assert len(base) == len(lora) == len(CAPTIONS) * SEEDS
    assert max(base) < 100 < 160 < min(lora), "the base's dark grounds beside the LoRA's light ones, row by row"


def shown(browser: str, page: Path, folder: Path, shot: Path, name: str, window: str) -> list[float]:
    """The mean brightness of every image in a candidate's column of the grid, as it is on the screenshot."""
    images = places(browser, page, folder, f".grid .cell[data-name={name}] img", window)
    with Image.open(shot) as picture:
        grey = picture.convert("L")
    return [ImageStat.Stat(grey.crop(image.box)).mean[0] for image in images]
