"""The first evening, with commands copied from the README: a LoRA with `--adt` and one without, a comparison, a verdict."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import host_training
from benchmarks.beds.pictures import STYLES
from benchmarks.beds.small_sd import ASSETS
from browser import browse, find_browser
from documents import command_of
from tinyhost.run import CompletedRun, host_environment, launch_command, run_to_end

pytestmark = pytest.mark.slow

PATHS = {"sd15.safetensors": ASSETS / "model", "512,512": "64,64", "2000": "60", "bf16": "no"}
"""What the README takes for granted -> the small Stable Diffusion, at its size, on a CPU."""

SMALL = (
    *("--learning_rate", "1e-3", "--train_batch_size", "2", "--max_data_loader_n_workers", "0", "--seed", "1"),
    *("--tokenizer_cache_dir", "tokenizers"),
)
DINO = str(ASSETS / "dinov2")
COMPARED = ("--backbone", DINO, "--device", "cpu", "--batch_size", "10", "--seeds", "2", "--steps", "10", "--cfg", "3")


def substituted(words: tuple[str, ...]) -> list[str]:
    """Return the arguments of a command with the small model in place of the reader's."""
    return [str(PATHS.get(word, word)) for word in words]


@pytest.fixture(scope="module")
def evening(host_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CompletedRun]]:
    """The folder in which the README's commands ran, and the runs: with `--adt`, without, and the comparison."""
    folder = tmp_path_factory.mktemp("evening")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_training, "IMAGES", 60)
        patch.setattr(host_training, "STYLE", STYLES[0])  # the base's own: a last mile
        host_training.write_training_images(folder / "train")
    shutil.copytree(ASSETS / "tokenizers", folder / "tokenizers")  # the Hugging Face libraries write beside them
    variables = host_environment("sd", folder, hub_cache=folder / "tokenizers")

    def run(command: list[str]) -> CompletedRun:
        return CompletedRun(*run_to_end(command, folder, variables, timeout=1800), folder / "output").check()

    script, *given = substituted(command_of("README.md", "accelerate", "launch", "train_network.py").words[2:])
    launch = [*launch_command("accelerate"), str(host_dir / script)]
    plain = given[: given.index("--adt")]  # its options come last
    adt = run([*launch, *given, *SMALL, "--adt_backbone", DINO, "--adt_disc_width", "32"])
    without = run([*launch, *plain, *SMALL, "--output_name", "plain"])
    words = substituted(command_of("README.md", "adt", "compare").words[1:])
    return folder, [adt, without, run([sys.executable, "-m", "adt_plugin", *words, *COMPARED])]


def test_the_run_says_what_it_will_do_and_what_it_did(evening: tuple[Path, list[CompletedRun]]) -> None:
    folder, (adt, without, _) = evening
    assert "ADT begins: 45 turns to come, of which the first 40 train the discriminator alone" in adt.log
    assert "ADT: the warm-up is over" in adt.log and "ADT ends: 45 turns took" in adt.log
    assert "ADT" not in without.log
    assert adt.metadata("my_lora.safetensors")["ss_adt_weight"] == "5.0"
    assert not any("adt" in key for key in without.metadata("plain.safetensors"))
    assert set(adt.saved("my_lora.safetensors")) == set(without.saved("plain.safetensors"))
    pictures = {path.name for path in (folder / "output").glob("*.png")}
    assert pictures == {"my_lora-adt-progress.png", "my_lora-adt-000020.png", "my_lora-adt-000040.png"}
    assert len((folder / "output" / "my_lora-adt.jsonl").read_text(encoding="utf-8").splitlines()) == 1 + 45


def test_the_comparison_ends_with_a_verdict(evening: tuple[Path, list[CompletedRun]]) -> None:
    folder, (_, _, compared) = evening
    scores = json.loads((folder / "comparison" / "scores.json").read_text(encoding="utf-8"))
    assert scores["verdict"] in compared.stdout
    figures = scores["scopes"][0]["figures"]
    assert set(figures) == {"base", "plain", "adt"} and scores["scopes"][0]["images"] == 20
    assert figures["adt"]["kid"]["value"] != figures["plain"]["kid"]["value"] != figures["base"]["kid"]["value"]
    assert f"Open {folder / 'comparison' / 'comparison.html'}" in compared.stdout


def test_the_page_is_shown_by_a_browser(evening: tuple[Path, list[CompletedRun]], tmp_path: Path) -> None:
    folder, _ = evening
    browser = find_browser()
    if browser is None:
        pytest.skip("no chromium is installed")
    picture = tmp_path / "page.png"
    browse(browser, folder / "comparison" / "comparison.html", tmp_path, "--window-size=1200,1600", f"--screenshot={picture}")
    with Image.open(picture) as shown:
        colours = shown.convert("RGB").getcolors(1 << 24)
    assert shown.size == (1200, 1600) and len(colours) > 1000, "a page with images on it, not a blank one"
