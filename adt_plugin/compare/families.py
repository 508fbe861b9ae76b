"""What `compare` can load, told from a file's header or a folder's index before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from adt_plugin.core.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """What differs between model families.

    Attributes:
        name: short, as in `TEXT_ENCODERS`.
        title: for the page.
        pipeline: diffusers' class.
        size: side in pixels of the images that it was trained for.
        guidance: the usual guidance scale.
        multiple: sides of images are multiples of it.
        flow: whether it is a flow model, which only the Euler sampler walks.
        chunked: whether CLIP alone reads its captions, in chunks of 75 tokens.
    """

    name: str
    title: str
    pipeline: str
    size: int
    guidance: float
    multiple: int
    flow: bool = False
    chunked: bool = False


SD = Family("sd", "Stable Diffusion 1.x / 2.x", "StableDiffusionPipeline", 512, 7.0, 8, chunked=True)
SDXL = Family("sdxl", "SDXL", "StableDiffusionXLPipeline", 1024, 7.0, 8, chunked=True)
SD3 = Family("sd3", "SD3", "StableDiffusion3Pipeline", 1024, 5.0, 16, flow=True)
FLUX = Family("flux", "FLUX.1", "FluxPipeline", 1024, 3.5, 16, flow=True)

FAMILIES = {family.name: family for family in (SD, SDXL, SD3, FLUX)}

SIGNS = (
    ("distilled_guidance_layer.", None),  # Chroma has FLUX's other layers
    ("double_blocks.0.img_attn.norm.query_norm.scale", FLUX),
    ("joint_blocks.0.context_block.attn.qkv.weight", SD3),
    ("conditioner.embedders.1.model.", SDXL),
    ("cond_stage_model.model.", SD),
    ("cond_stage_model.transformer.", SD),
)
"""Part of a tensor's name -> family; the first that is found. None: known, and not served."""

NETWORKS = ("lora_", "oft_", "lycoris_")
"""What all tensors' names in a LoRA or LyCORIS file begin with."""

SERVED = "compare reads SD 1.x / 2.x, SDXL, SD3 and FLUX.1, as one .safetensors file or as a diffusers folder"


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        path: of the file or folder.
        family: which kind it is.
        second: whether it is a Stable Diffusion 2.x.
    """

    path: Path
    family: Family
    second: bool = False


def identify(flag: str, path: Path) -> Model:
    """Tell which family a model is of.

    Raises:
        ConfigError: there is no such file, it is pickled, or its family is not served.
    """
    if path.is_dir():
        return _identify_folder(flag, path)
    if not path.is_file():
        raise ConfigError(f"{flag}: there is no {path}: give a .safetensors file or a diffusers folder.")
    names = tensor_names(flag, path)
    if names and all(name.startswith(NETWORKS) for name in names):
        raise ConfigError(f"{flag}: {path} is a network, not a whole model: give it by --lora NAME=FILE.")
    for sign, family in SIGNS:
        if any(sign in name for name in names):
            if family is None or (family is FLUX and not any("vector_in.in_layer" in name for name in names)):
                break
            return Model(path, family, second=sign == "cond_stage_model.model.")
    raise ConfigError(f"{flag}: {path} is of no family that can be compared: {SERVED}.")


def _identify_folder(flag: str, path: Path) -> Model:
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag}: {path} is no diffusers folder, it has no readable model_index.json: {SERVED}.") from error
    for family in FAMILIES.values():
        if index.get("_class_name") == family.pipeline:
            return Model(path, family)
    raise ConfigError(f"{flag}: {path} holds a {index.get('_class_name')}: {SERVED}.")


def tensor_names(flag: str, path: Path) -> Collection[str]:
    """Return the names of a file's tensors, read from its header alone.

    Raises:
        ConfigError: it is pickled or damaged.
    """
    from safetensors import SafetensorError, safe_open  # type: ignore[attr-defined]

    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ConfigError(f"{flag}: {path} is pickled and could run code, it is never read: convert it to .safetensors.")
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[attr-defined]
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{flag}: {path} cannot be read as safetensors ({error}).") from error


def metadata_of(path: Path) -> dict[str, str]:
    """Return what a file's header says of its training; nothing for a folder or a file that cannot be read."""
    from safetensors import SafetensorError, safe_open  # type: ignore[attr-defined]

    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[attr-defined]
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def native_size(model: Model) -> int:
    """Return the side in pixels of the images that a model was made for; a folder's configuration may say it."""
    for part in ("unet", "transformer"):
        config = model.path / part / "config.json"
        if model.path.is_dir() and config.is_file():
            sample = json.loads(config.read_text(encoding="utf-8")).get("sample_size")
            return int(sample) * 8 if isinstance(sample, int) else model.family.size
    return 768 if model.second else model.family.size
