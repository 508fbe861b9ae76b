"""Which model a run trains, told without loading it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from adt_plugin.cost.detect import detect, of_name
from adt_plugin.cost.models import MODELS

SAMPLES = Path(__file__).resolve().parents[2] / "sample_configs"


def checkpoint(path: Path, *names: str) -> Path:
    """A safetensors file without data: its header is all that is read."""
    header = json.dumps({name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@pytest.mark.parametrize(
    ("tensor", "model"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "sd15"),
        ("conditioner.embedders.1.model.ln_final.weight", "sdxl"),
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "sd3"),
        ("single_blocks.0.linear1.weight", "flux"),
        ("distilled_guidance_layer.layers.0.in_layer.weight", "chroma"),
        ("noise_refiner.0.attention.qkv.weight", "lumina"),
        ("net.llm_adapter.blocks.0.mlp.0.weight", "anima"),
        ("byt5_in.fc1.weight", "hunyuan"),
    ],
)
def test_a_file_is_told_by_its_tensors_whatever_it_is_called(tmp_path: Path, tensor: str, model: str) -> None:
    """Chroma and HunyuanImage have single blocks as FLUX has, and SDXL has the input blocks of SD 1.5."""
    others = (
        ["model.diffusion_model.input_blocks.1.0.weight"]
        if model == "sdxl"
        else ["single_blocks.1.x"] * (model in ("chroma", "hunyuan"))
    )
    path = checkpoint(tmp_path / "sd15_flux_xl.safetensors", *others, tensor)
    assert detect({"pretrained_model_name_or_path": str(path)}) == (model, f"by what is in {path.name}")
    assert model in MODELS


@pytest.mark.parametrize(("size", "model"), [(4_000_000_000, "sd15"), (6_900_000_000, "sdxl")])
def test_a_pickled_file_is_told_by_its_size_and_never_opened(tmp_path: Path, size: int, model: str) -> None:
    path = tmp_path / "model.ckpt"
    with path.open("wb") as file:
        file.truncate(size)  # sparse
    assert detect({"pretrained_model_name_or_path": str(path)}) == (model, "by what is in model.ckpt")


def test_a_folder_is_told_by_its_pipeline(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    assert detect({"pretrained_model_name_or_path": str(tmp_path)}) == ("sdxl", f"by what is in {tmp_path.name}")


@pytest.mark.parametrize(
    ("keys", "model"),
    [
        ({"ae": "ae.safetensors"}, "flux"),
        ({"ae": "ae.safetensors", "model_type": "chroma"}, "chroma"),
        ({"ae": "ae.safetensors", "gemma2": "gemma.safetensors"}, "lumina"),
        ({"qwen3": "qwen"}, "anima"),
        ({"network_module": "networks.lora_hunyuan_image"}, "hunyuan"),
        (
            {"network_module": "networks.lora", "pretrained_model_name_or_path": "stabilityai/stable-diffusion-xl-base-1.0"},
            "sdxl",
        ),
        ({"pretrained_model_name_or_path": "models/v1-5-pruned-emaonly.safetensors"}, "sd15"),
    ],
)
def test_where_the_file_is_not_there_keys_and_names_tell(keys: dict[str, str], model: str) -> None:
    found = detect(keys)
    assert found is not None and found[0] == model


def test_a_damaged_or_unknown_model_is_not_guessed(tmp_path: Path) -> None:
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"\xff" * 40)
    assert detect({"pretrained_model_name_or_path": str(damaged)}) is None
    assert detect({}) is None and of_name("dreamshaper_8") is None


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*_lora*.toml")), ids=lambda path: path.name)
def test_every_preset_is_told_by_itself(sample: Path) -> None:
    import toml

    from adt_plugin.cost.cli import flattened

    found = detect(flattened(toml.loads(sample.read_text(encoding="utf-8"))))
    assert found is not None and found[0] == sample.stem.partition("_")[0]
