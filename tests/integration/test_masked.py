"""Masked loss, alpha masks, regularisation images and preserved outputs, through the real host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adtruns import rows, write_data_set
from PIL import Image

from tinyhost.models import write_images
from tinyhost.run import CompletedRun, TinyRun

Options = tuple[str | Path, ...]

STEPS = ("--max_train_steps", "6", "--adt_pictures_every", "1")
SIDE = 64
ABOVE_GEN, ABOVE_REAL = 2 * 14, 14
"""Pixels of a picture's captions: two lines above the generated image, one above the real one."""


def with_alpha(folder: Path) -> Path:
    """Training images of which the left half is opaque."""
    for path in write_images(folder).rglob("*.png"):
        image = Image.open(path).convert("RGBA")
        image.putalpha(left_half())
        image.save(path)
    return folder


def left_half() -> Image.Image:
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    return mask


def halves(run: CompletedRun, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """How much the generated image of a turn's picture differs from the real one, in its left half and in its right."""
    with Image.open(run.output_dir / f"tiny-adt-{turn:06d}.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    difference = np.abs(pixels[ABOVE_GEN : ABOVE_GEN + SIDE] - pixels[ABOVE_GEN + SIDE + ABOVE_REAL :])
    return difference[:, : SIDE // 2], difference[:, SIDE // 2 :]


def assert_judged_in_the_left_half_alone(run: CompletedRun, turn: int) -> None:
    left, right = halves(run, turn)
    assert left.max() > 0 and right.max() == 0


def test_an_alpha_mask_and_regularisation_images_without_a_weight(
    run_tiny: TinyRun, adt_options: Options, tmp_path: Path, cell: Callable[..., None]
) -> None:
    cell("train_network.py", "--alpha_mask --prior_loss_weight 0")
    images, regularisation = with_alpha(tmp_path / "images"), write_images(tmp_path / "regularisation")
    options = ("--alpha_mask", "--reg_data_dir", regularisation, "--prior_loss_weight", "0")
    run = run_tiny(*STEPS, *adt_options, *STEPS, *options, images=images).check()
    turns = [row for row in rows(run) if not row["warmup"]]
    assert all(row["grad_norm_raw"] > 0 for row in turns)
    masked = [row["turn"] for row in turns if row["grad_norm"] > 0]
    assert 0 < len(masked) < len(turns)  # the others are of regularisation
    for turn in masked:
        assert_judged_in_the_left_half_alone(run, turn)


def test_a_masked_loss_with_masks_in_files(
    run_tiny: TinyRun, adt_options: Options, tmp_path: Path, cell: Callable[..., None]
) -> None:
    cell("train_network.py", "--masked_loss")
    (images,) = write_images(tmp_path / "images").glob("4_*")
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in images.glob("*.png"):
        left_half().convert("RGB").save(masks / path.name)
    config = write_data_set(tmp_path, image_dir=str(images), conditioning_data_dir=str(masks))
    run = run_tiny(*adt_options, *STEPS, "--masked_loss", "--dataset_config", config).check()
    turns = [row for row in rows(run) if not row["warmup"]]
    assert turns and all(row["grad_norm"] > 0 for row in turns)
    assert_judged_in_the_left_half_alone(run, turns[-1]["turn"])


def test_an_output_that_is_to_be_preserved_is_not_trained(
    run_tiny: TinyRun, adt_options: Options, tmp_path: Path, host_dir: Path, cell: Callable[..., None]
) -> None:
    cell("train_network.py", "alpha_mask and diff_output_preservation in --dataset_config")
    if "diff_output_preservation" not in (host_dir / "train_network.py").read_text():
        pytest.skip("this version of sd-scripts has no diff_output_preservation")
    (images,) = with_alpha(tmp_path / "images").glob("4_*")
    attributes = {"diff_output_preservation": True}
    config = write_data_set(tmp_path, image_dir=str(images), alpha_mask=True, custom_attributes=attributes)
    run = run_tiny(*adt_options, *STEPS, "--dataset_config", config).check()
    turns = [row for row in rows(run) if not row["warmup"]]
    assert turns and all(row["grad_norm"] == 0 and row["grad_norm_raw"] > 0 for row in turns)
    assert_judged_in_the_left_half_alone(run, turns[-1]["turn"])
