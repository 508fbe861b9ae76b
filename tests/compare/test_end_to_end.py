"""Whole commands for every family, from arguments to page and figures: a LoRA and a whole checkpoint beside the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from adt_plugin.compare.cli import compare_main
from adt_plugin.compare.networks import places_of
from tiny_compare import parts_of, write_network
from tinyhost.models import HostModel, TinyModel
from tinyhost.run import TinyRun

FAMILIES = ("sd", "sdxl", "sd3", "flux")
TRAINERS = {
    "sd": ("train_network.py", "train_db.py"),
    "sdxl": ("sdxl_train_network.py", "sdxl_train.py"),
    "sd3": ("sd3_train_network.py", "sd3_train.py"),
    "flux": ("flux_train_network.py", "flux_train.py"),
}
"""Family -> the host's scripts for a LoRA and for a whole model."""


def given_files(model: HostModel) -> list[str]:
    """The arguments for a tiny model and the files beside it."""
    parts = parts_of(model)
    beside = {"--ae": parts.vae, "--clip_l": parts.clip_l, "--clip_g": parts.clip_g, "--t5xxl": parts.t5xxl}
    given = ["--base", str(model.checkpoint), "--tokenizer_cache_dir", str(model.tokenizers)]
    return [*given, *(word for flag, path in beside.items() if path for word in (flag, str(path)))]


def tuned(checkpoint: Path, folder: Path) -> Path:
    """A whole model that differs from another: a folder or a file, as that one is."""
    copy = folder / f"tuned-{checkpoint.name}"
    if checkpoint.is_dir():
        shutil.copytree(checkpoint, copy)
        file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    else:
        file = copy
        shutil.copy(checkpoint, copy)
    save_file({key: shifted(key, tensor) for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    return copy


def shifted(key: str, tensor: Tensor) -> Tensor:
    """Weights of the denoiser, moved a little."""
    return tensor if "text_encoders" in key or "first_stage" in key else tensor * 1.05


BLOCKS = {
    "sd": ("lora_unet_down", "lora_unet_mid", "lora_unet_up"),
    "sdxl": ("lora_unet_input", "lora_unet_output", "lora_unet_middle"),
}
"""What sd-scripts calls the blocks of a U-Net; either family's are known under both names."""


def tiny_network(pipeline: Any, family: str, path: Path) -> Path:
    """A random LoRA of every attention, under the names of sd-scripts."""
    wanted = ("attn1_to_q", "attn2_to_k", "x_block_attn_qkv", "img_attn_qkv", "linear1")
    original = BLOCKS.get(family, ("lora_unet",))
    layers = {
        name: tuple(place.read("weight").shape)
        for name, place in places_of(pipeline, family).items()
        if name.startswith(original) and name.endswith(wanted)
    }
    return write_network(path, layers, scale=0.3)


def check(out: Path, candidates: dict[str, str]) -> None:
    """Every file is there and whole, each candidate has figures of its own, and its images are not the base's."""
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert {found["name"]: found["kind"] for found in scores["candidates"]} == candidates
    figures = scores["scopes"][0]["figures"]
    assert len({figures[name]["kid"]["value"] for name in candidates}) == len(candidates)
    assert len({found["sha256"] for found in scores["candidates"]}) == len(candidates)
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert scores["verdict"] in page and all(f'data-name="{name}"' in page for name in candidates)
    images = [path.read_bytes() for path in (out / "images").glob("*.png")]
    assert len(images) == len(set(images)) == 2 * len(candidates)
    assert (out / "grid.png").is_file()


def run_compare(given: list[str], images: Path, dino: Path, out: Path) -> None:
    prompts = out.parent / "prompts.txt"
    prompts.write_text("a red square\na green disc", encoding="utf-8")
    compare_main(
        [
            *given,
            *("--prompts", str(prompts), "--reference", str(images), "--backbone", str(dino), "--out", str(out)),
            *("--drift_prompts", "none", "--device", "cpu", "--size", "64", "--steps", "1", "--seeds", "1", "--cfg", "2"),
        ]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_and_a_checkpoint_are_compared_with_their_base(
    family: str, tiny_model: TinyModel, loaded: Any, tiny_images: Path, tiny_dino: Path, tmp_path: Path
) -> None:
    model = tiny_model(family)
    lora = tiny_network(loaded(family), family, tmp_path / "lora.safetensors")
    whole = tuned(model.checkpoint, tmp_path)
    given = [*given_files(model), "--lora", f"lora={lora}", "--checkpoint", f"whole={whole}"]
    run_compare(given, tiny_images, tiny_dino, tmp_path / "out")
    check(tmp_path / "out", {"base": "base", "lora": "lora", "whole": "checkpoint"})


def test_a_checkpoint_alone_is_compared_with_its_base(
    tiny_sd: HostModel, tiny_images: Path, tiny_dino: Path, tmp_path: Path
) -> None:
    given = [*given_files(tiny_sd), "--checkpoint", f"whole={tuned(tiny_sd.checkpoint, tmp_path)}"]
    run_compare(given, tiny_images, tiny_dino, tmp_path / "out")
    check(tmp_path / "out", {"base": "base", "whole": "checkpoint"})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_host_has_trained_is_compared(
    family: str, run_tiny: TinyRun, tiny_model: TinyModel, tiny_images: Path, tiny_dino: Path, tmp_path: Path
) -> None:
    """A LoRA and a whole model by sd-scripts' own trainers, as the files that they leave."""
    model, scripts = tiny_model(family), TRAINERS[family]
    lora, whole = (run_tiny("--max_train_steps", "1", script=script).check().output_dir for script in scripts)
    given = [*given_files(model), "--lora", f"lora={lora / 'tiny.safetensors'}"]
    given += ["--checkpoint", f"whole={whole / 'tiny.safetensors'}"]
    if model.checkpoint.is_dir():  # what is trained is saved as one file, of sizes that no published model has
        given += ["--model_config", str(model.checkpoint)]
    run_compare(given, tiny_images, tiny_dino, tmp_path / "out")
    check(tmp_path / "out", {"base": "base", "lora": "lora", "whole": "checkpoint"})
