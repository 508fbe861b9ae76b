"""Which model a run trains: from the file, from the keys of its options, from names; nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adt_plugin.core.run.files import tensor_shapes

TENSORS = (
    ("llm_adapter.", "anima"),
    ("distilled_guidance_layer.", "chroma"),
    ("byt5_in.", "hunyuan"),
    ("noise_refiner.", "lumina"),
    ("joint_blocks.", "sd3"),
    ("single_blocks.", "flux"),
    ("conditioner.embedders.1.", "sdxl"),
    ("label_emb.", "sdxl"),
    ("input_blocks.", "sd15"),
    ("down_blocks.", "sd15"),
)
"""A part of a tensor's name -> the model; the first that occurs decides."""

KEYS = (
    ("gemma2", "lumina"),
    ("qwen3", "anima"),
    ("byt5", "hunyuan"),
    ("clip_g", "sd3"),
    ("ae", "flux"),
)
"""Options that one family of sd-scripts' trainers alone has -> the model."""

NAMES = (
    ("chroma", "chroma"),
    ("flux", "flux"),
    ("lumina", "lumina"),
    ("anima", "anima"),
    ("hunyuan", "hunyuan"),
    ("sd3", "sd3"),
    ("stable-diffusion-3", "sd3"),
    ("xl", "sdxl"),
    ("pony", "sdxl"),
    ("illustrious", "sdxl"),
    ("noob", "sdxl"),
    ("v1-5", "sd15"),
    ("sd15", "sd15"),
    ("stable-diffusion-v1", "sd15"),
    ("stable-diffusion-2", "sd15"),
)
"""A part of the name of a model, a network module or the file of options -> the model; the first that occurs decides."""

PIPELINES = (
    ("StableDiffusionXL", "sdxl"),
    ("StableDiffusion3", "sd3"),
    ("Flux", "flux"),
    ("Chroma", "chroma"),
    ("Lumina2", "lumina"),
    ("HunyuanImage", "hunyuan"),
    ("StableDiffusion", "sd15"),
)
"""The beginning of the name of a diffusers pipeline -> the model; the first that fits decides."""

LARGE = 5.5e9
"""Bytes from which a checkpoint that cannot be looked into is no Stable Diffusion 1.5: SDXL has 6.9e9 in half precision."""


def detect(keys: Mapping[str, Any], config_file: Path | None = None) -> tuple[str, str] | None:
    """Return the model, by its name in `MODELS`, and what it was told by; None where nothing tells.

    Args:
        keys: options of the run, by the host's names.
        config_file: from which they come.
    """
    model = str(keys.get("pretrained_model_name_or_path") or "")
    path = Path(model)
    found = of_file(path) if path.is_file() else of_folder(path) if path.is_dir() else None
    if found:
        return found, f"by what is in {path.name}"
    if keys.get("model_type") == "chroma":
        return "chroma", "by model_type"
    for key, name in KEYS:
        if keys.get(key):
            return name, f"by the option {key}"
    sources = {"network_module": keys.get("network_module"), "pretrained_model_name_or_path": path.name}
    sources["the file's own name"] = config_file.stem if config_file else ""
    for source, value in sources.items():
        if name_found := of_name(str(value or "")):
            return name_found, f"by {source}"
    return None


def of_name(text: str) -> str | None:
    """Return the model that a name stands for."""
    return next((model for part, model in NAMES if part in text.lower().replace("_", "-").replace("sd-xl", "xl")), None)


def of_file(path: Path) -> str | None:
    """Return the model of a checkpoint: by its tensors' names, or by its size where it is pickled."""
    if path.suffix != ".safetensors":
        return "sdxl" if path.stat().st_size > LARGE else "sd15"
    names = tensor_shapes(path)
    return next((model for part, model in TENSORS if any(part in name for name in names)), None)


def of_folder(path: Path) -> str | None:
    """Return the model of a folder in diffusers' layout, by the pipeline that it names."""
    try:
        pipeline = str(json.loads((path / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((model for start, model in PIPELINES if pipeline.startswith(start)), None)
