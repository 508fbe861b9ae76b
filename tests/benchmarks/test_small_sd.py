"""The bench of the small Stable Diffusion: its shipped LoRA, its figures and its page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks import DOCUMENTS, host_demo, host_training, small_sd
from benchmarks.beds.pictures import CAPTIONS
from benchmarks.beds.small_sd import decoded, load_vae, sample
from benchmarks.host_training import (
    MODEL,
    PLATEAU,
    POINTS,
    SCRIPT,
    Recipe,
    host_options,
    load_denoiser,
    merge_lora,
    point_name,
    score,
    trained,
)
from benchmarks.store import CellStore
from tinyhost.models import write_images
from tinyhost.run import OUTPUT_NAME, run_host
from tinyhost.warm import run_warm


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tenth of the training images, which samples are compared with, to be decoded."""
    monkeypatch.setattr(host_training, "IMAGES", 200)
    host_training.reference.cache_clear()
    yield
    host_training.reference.cache_clear()


def test_the_lora_at_its_plateau_draws_the_asked_digits_in_the_new_style(few_images: None) -> None:
    points = [(3.0, 5)]
    base, found = (score(load_denoiser(lora), "validation", 1, 60, points)[point_name(3.0, 5)] for lora in (None, PLATEAU))
    assert found["well_formed"] > 0.7
    assert found["fd"] < base["fd"] / 2  # the base knows the other style alone


def test_training_images_are_nearer_to_held_out_ones_than_any_sample(monkeypatch: pytest.MonkeyPatch, few_images: None) -> None:
    seen: list[int] = []

    def figures(drawn: torch.Tensor, asked: torch.Tensor, split: str) -> dict[str, float]:
        seen.append(len(drawn))
        return scored(drawn, asked, split)

    scored = host_training.figures
    monkeypatch.setattr(host_training, "figures", figures)
    found = host_training.training_figures("validation", 40)
    assert seen and set(seen) == {40}
    drawn = score(load_denoiser(PLATEAU), "validation", 1, 40, [(3.0, 5)])[point_name(3.0, 5)]
    assert found["fd"] < drawn["fd"] and found["well_formed"] > 0.8 and found["novelty"] < 0.1


def test_a_lora_of_another_model_is_refused(tmp_path: Path) -> None:
    other = {name.replace("down_blocks_0", "down_blocks_7"): part for name, part in load_file(PLATEAU).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="down_blocks_7"):
        merge_lora(load_denoiser().unet, tmp_path / "other.safetensors")


def runs() -> dict[str, list[dict[str, Any]]]:
    """Two seeds, every figure the run's number."""
    names = ("the plateau", small_sd.PLAIN, small_sd.ADT.name)
    return {
        name: [
            {
                "seconds": 10 * seed,
                "scores": {point_name(*point): dict.fromkeys(small_sd.FIGURES, place + seed) for point in POINTS},
            }
            for seed in (1, 2)
        ]
        for place, name in enumerate(names)
    }


def test_the_page_has_every_point_and_the_paired_changes() -> None:
    page = "\n".join(small_sd.paragraphs(runs(), dict.fromkeys(small_sd.FIGURES, 0.25)))
    assert page.count("| training images |") == len(POINTS)
    assert all(f"## {point_name(*point)}\n" in page for point in POINTS)
    assert f"| {small_sd.ADT.name} against {small_sd.PLAIN} |" in page.replace("  ", " ")
    assert "+42 % (+33 to +50), p = 0.500" in page  # 3 over 2, and 4 over 3


def test_the_table_of_the_last_mile_is_what_its_json_says() -> None:
    results, page = small_sd.published(), (DOCUMENTS.parent / "benchmarks.md").read_text(encoding="utf-8")
    assert small_sd.summary(small_sd.shown_runs(results), small_sd.floor_of(results)) in page


def test_adt_at_its_best_is_what_two_seeds_on_validation_chose() -> None:
    """The least mean logarithm of distances; what was tried with one seed is no candidate."""

    def cell(fd: float) -> dict[str, Any]:
        return {"scores": {point_name(*point): {"fd": fd} for point in POINTS}}

    distances = {recipe.name: (6.0, 6.0) for recipe in small_sd.CANDIDATES} | {small_sd.QUARTER.name: (9.0, 3.0)}
    results = {f"validation: {name}, seed {seed}": cell(fd) for name, pair in distances.items() for seed, fd in enumerate(pair)}
    assert small_sd.best_of(results) == small_sd.QUARTER  # 27 is less than 36


def test_the_best_is_shown_once_it_has_as_many_seeds_as_the_others() -> None:
    results = small_sd.published()
    best = small_sd.best_of(results).name
    shown = small_sd.shown_runs(results)
    assert list(shown) == [*small_sd.heldout_runs(results), best] and len({len(cells) for cells in shown.values()}) == 1
    short = {label: result for label, result in results.items() if label != f"heldout: {best}, seed 2"}
    assert list(small_sd.shown_runs(short)) == list(small_sd.heldout_runs(results))
    without_trials = {label: result for label, result in results.items() if label.startswith("heldout: ")}
    assert list(small_sd.shown_runs(without_trials)) == list(small_sd.heldout_runs(results))


def test_the_page_is_what_its_json_says() -> None:
    results = small_sd.published()
    page = "\n\n".join(small_sd.paragraphs(small_sd.shown_runs(results), small_sd.floor_of(results))) + "\n"
    assert (DOCUMENTS / "small_sd.md").read_text(encoding="utf-8") == page


def test_the_table_of_levers_is_what_its_json_says() -> None:
    results, page = small_sd.published(), (DOCUMENTS.parent / "benchmarks.md").read_text(encoding="utf-8")
    table = small_sd.levers_table(results)
    assert len(table.splitlines()) == 2 + 1 + len(small_sd.LEVERS) + len(small_sd.TWICE)
    assert table in page


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        (small_sd.guidance_table, 4),
        (small_sd.batch_table, 2 * (2 + len(small_sd.SMALL_BATCHES)) + len(small_sd.SMALL_BATCHES_ONCE)),
    ],
)
def test_the_tables_of_guidance_and_of_small_batches_are_what_the_json_says(
    table: Callable[[dict[str, Any]], str], rows: int
) -> None:
    found = table(small_sd.published())
    assert len(found.splitlines()) == 2 + rows
    assert found in (DOCUMENTS.parent / "benchmarks.md").read_text(encoding="utf-8")


def test_a_recipe_with_another_batch_says_so_to_the_host_and_is_another_measurement(tmp_path: Path) -> None:
    bench = small_sd.Bench(tmp_path, CellStore(tmp_path / "store.json"), tmp_path)
    few, many = small_sd.SMALL_BATCHES[0], small_sd.ADT
    sizes = [options[options.index("--train_batch_size") + 1] for options in (host_options(r, 1, None) for r in (few, many))]
    assert sizes == ["4", str(host_training.BATCH)]
    accumulating = small_sd.SMALL_BATCHES_ONCE[0]
    options = host_options(accumulating, 1, None)
    assert options[options.index("--gradient_accumulation_steps") + 1] == "4"
    assert bench.settings(accumulating, 1) != bench.settings(replace(accumulating, accumulated=1), 1)
    assert bench.settings(few, 1) != bench.settings(replace(few, batch=host_training.BATCH), 1)


def test_the_demo_prints_its_commands_and_compares_what_they_made(
    few_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With LoRAs that are there already: the base's plateau in place of both."""

    def made(recipe: Recipe, seed: int, begin: Path, images: Path, host: Path, out: Path) -> float:
        assert len(list(images.rglob("*.png"))) == 3
        out.mkdir(parents=True)
        (out / f"{OUTPUT_NAME}.safetensors").write_bytes(begin.read_bytes())
        return 1.0

    monkeypatch.setattr(host_demo, "train", made)
    monkeypatch.setattr(host_training, "IMAGES", 3)
    monkeypatch.setattr(host_demo, "SAMPLES", 12)
    monkeypatch.setattr(host_demo, "POINTS", ((3.0, 5), (3.0, 6)))
    table = host_demo.run(tmp_path / "host", tmp_path, host_demo.RUNS).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    assert [row[0] for row in rows] == [name for name in ("base: the plateau", "plain training", "ADT") for _ in (5, 6)]
    assert rows[0][2:] == rows[2][2:] == rows[4][2:]  # the same file three times
    commands = [line for line in capsys.readouterr().out.splitlines() if "train_network.py" in line]
    assert ["--adt" in shlex.split(command) for command in commands] == [False, True]
    assert all(f"--network_weights {PLATEAU}" in command for command in commands)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.convert("HSV").getextrema()[1][1] > 20  # in colour


@pytest.mark.slow
@pytest.mark.parametrize("adt", [(), (*small_sd.HEADS, "--adt_warmup", "1")], ids=["plain", "turns"])
def test_the_host_goes_on_from_the_plateau(host_dir: Path, adt: tuple[str, ...], tmp_path: Path) -> None:
    made = tmp_path / "lora.safetensors"
    assert trained(Recipe("two steps", 2, "1e-3", adt), 1, PLATEAU, host_dir, made) > 0
    before, after = load_file(PLATEAU), load_file(made)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_full_fine_tuning_changes_the_whole_unet(host_dir: Path, tmp_path: Path) -> None:
    made = tmp_path / "unet.safetensors"
    recipe = Recipe("two steps", 2, "1e-3", (*small_sd.HEADS, "--adt_warmup", "1"), full=True)
    assert trained(recipe, 1, None, host_dir, made) > 0
    before, after = load_denoiser().unet, load_denoiser(made).unet
    assert all(not torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True))


def test_a_unets_own_weights_are_scored_as_they_are(tmp_path: Path) -> None:
    weights = {name: value + 1 for name, value in load_denoiser().unet.state_dict().items()}
    save_file(weights, tmp_path / "unet.safetensors")
    loaded = load_denoiser(tmp_path / "unet.safetensors").unet.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_the_hosts_own_previews_are_what_is_scored(host_dir: Path, tmp_path: Path) -> None:
    """Sampled by sd-scripts while it trains, and by diffusers as the benchmark does, from the same noise.

    By Euler: with DDIM, which is its default, sd-scripts limits the predicted latents to [-1, 1], which these exceed.
    """
    labels, steps, guidance = (3, 7), 10, 3
    prompts, images = tmp_path / "prompts.txt", write_images(tmp_path / "images")
    lines = [f"{CAPTIONS[label]} --w 64 --h 64 --s {steps} --l {guidance} --d {label}" for label in labels]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    options = [*host_options(Recipe("previews", 1, "1e-3"), 1, PLATEAU), "--sample_prompts", prompts, "--sample_at_first"]
    options += ["--sample_sampler", "euler"]
    run_host(SCRIPT, *options, host_dir=host_dir, model=MODEL, images=images, output_dir=tmp_path, runner=run_warm).check()
    network, vae = load_denoiser(PLATEAU), load_vae()
    euler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    for label, path in zip(labels, sorted((tmp_path / "sample").glob("*.png")), strict=True):
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(label))
        ours = decoded(vae, sample(network, noise, torch.tensor([label]), steps, guidance, sampler=euler))[0]
        with Image.open(path) as picture:
            theirs = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1) / 127.5 - 1
        assert (ours - theirs).abs().mean() < 0.01
