"""The first evening, with commands copied from the README: a plain LoRA, its finish, a comparison; a whole run with `--adt`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from adtruns import rows
from PIL import Image

from benchmarks import host_training
from benchmarks.beds.pictures import STYLES
from benchmarks.beds.small_sd import ASSETS
from browser import browse, find_browser
from documents import LAUNCH, commands_like
from tinyhost.run import CompletedRun, host_environment, launch_command, run_to_end

pytestmark = pytest.mark.slow

PATHS = {"sd15.safetensors": ASSETS / "model", "512,512": "64,64", "2000": "60", "300": "50", "bf16": "no"}
"""What the README takes for granted -> the small Stable Diffusion, at its size, on a CPU."""

SMALL = (
    *("--learning_rate", "1e-3", "--train_batch_size", "2", "--max_data_loader_n_workers", "0", "--seed", "1"),
    *("--tokenizer_cache_dir", "tokenizers"),
)
DINO = str(ASSETS / "dinov2")
SMALL_ADT = ("--adt_backbone", DINO, "--adt_disc_width", "32")
COMPARED = ("--backbone", DINO, "--device", "cpu", "--batch_size", "10", "--seeds", "2", "--steps", "10", "--cfg", "3")


def substituted(words: Sequence[str]) -> list[str]:
    """Return the arguments of a command with the small model in place of the reader's."""
    return [str(PATHS.get(word, word)) for word in words]


@dataclass(frozen=True)
class Evening:
    """The folder in which the README's commands ran, and the runs.

    Attributes:
        plain: the README's training command without `--adt`: the LoRA that is there already.
        finish: the lines that finish that LoRA.
        whole: the training command as it stands, with `--adt`; into a folder of its own.
        compared: the comparison of `plain` and `finish`.
    """

    folder: Path
    plain: CompletedRun
    finish: CompletedRun
    whole: CompletedRun
    compared: CompletedRun


@pytest.fixture(scope="module")
def evening(host_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Evening:
    folder = tmp_path_factory.mktemp("evening")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_training, "IMAGES", 60)
        patch.setattr(host_training, "STYLE", STYLES[0])  # the base's own: a last mile
        host_training.write_training_images(folder / "train")
    shutil.copytree(ASSETS / "tokenizers", folder / "tokenizers")  # the Hugging Face libraries write beside them
    variables = host_environment("sd", folder, hub_cache=folder / "tokenizers")

    def run(command: list[str], output: str = "output") -> CompletedRun:
        return CompletedRun(*run_to_end(command, folder, variables, timeout=1800), folder / output).check()

    def train(words: Sequence[str], output: str = "output") -> CompletedRun:
        script, *given = substituted(words)
        small = [*SMALL, *(SMALL_ADT if "--adt" in given else ()), "--output_dir", output]
        return run([*launch_command("accelerate"), str(host_dir / script), *given, *small], output)

    whole, finish = (command.words[2:] for command in commands_like("README.md", *LAUNCH, count=2))
    plain = train([word for word in whole if word != "--adt"])
    finished, from_nothing = train(finish), train(whole, "whole")
    (compare,) = commands_like("README.md", "adt", "compare", count=1)
    compared = run([sys.executable, "-m", "adt_plugin", *substituted(compare.words[1:]), *COMPARED])
    return Evening(folder, plain, finished, from_nothing, compared)


def test_the_lora_that_is_there_already_knows_nothing_of_adt(evening: Evening) -> None:
    assert "ADT" not in evening.plain.log
    assert not any("adt" in key for key in evening.plain.metadata("my_lora.safetensors"))


def test_the_finish_has_turns_from_its_first_step_on_and_leaves_the_first_file(evening: Evening) -> None:
    finish = evening.finish
    assert "ADT begins: 50 turns to come, of which the first 40 train the discriminator alone" in finish.log
    assert "ADT: the warm-up is over" in finish.log and "ADT ends: 50 turns took" in finish.log
    assert [row["step"] for row in rows(finish, "my_lora_adt")] == list(range(50))
    assert finish.metadata("my_lora_adt.safetensors")["ss_adt_weight"] == "5.0"
    before, after = evening.plain.saved("my_lora.safetensors"), finish.saved("my_lora_adt.safetensors")
    assert before.keys() == after.keys() and not all(torch.equal(before[name], after[name]) for name in before)


def test_a_whole_run_says_what_it_will_do_and_what_it_did(evening: Evening) -> None:
    whole = evening.whole
    assert "ADT begins: 45 turns to come, of which the first 40 train the discriminator alone" in whole.log
    assert "ADT: the warm-up is over" in whole.log and "ADT ends: 45 turns took" in whole.log
    assert whole.metadata("my_lora.safetensors")["ss_adt_weight"] == "5.0"
    assert set(whole.saved("my_lora.safetensors")) == set(evening.plain.saved("my_lora.safetensors"))
    pictures = {path.name for path in whole.output_dir.glob("*.png")}
    assert pictures == {"my_lora-adt-progress.png", "my_lora-adt-000020.png", "my_lora-adt-000040.png"}
    assert len(rows(whole, "my_lora")) == 45


def test_the_comparison_ends_with_a_verdict(evening: Evening) -> None:
    folder = evening.folder
    scores = json.loads((folder / "comparison" / "scores.json").read_text(encoding="utf-8"))
    assert scores["verdict"] in evening.compared.stdout
    figures = scores["scopes"][0]["figures"]
    assert set(figures) == {"base", "plain", "adt"} and scores["scopes"][0]["images"] == 20
    assert figures["adt"]["kid"]["value"] != figures["plain"]["kid"]["value"] != figures["base"]["kid"]["value"]
    assert f"Open {folder / 'comparison' / 'comparison.html'}" in evening.compared.stdout


def test_the_page_is_shown_by_a_browser(evening: Evening, tmp_path: Path) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip("no chromium is installed")
    picture = tmp_path / "page.png"
    browse(
        browser,
        evening.folder / "comparison" / "comparison.html",
        tmp_path,
        "--window-size=1200,1600",
        f"--screenshot={picture}",
    )
    with Image.open(picture) as shown:
        colours = shown.convert("RGB").getcolors(1 << 24)
    assert shown.size == (1200, 1600) and len(colours) > 1000, "a page with images on it, not a blank one"
