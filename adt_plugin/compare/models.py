"""Pipelines of diffusers from the files that users of sd-scripts have, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from adt_plugin.compare import configs, layouts, sizes
from adt_plugin.compare.families import Model
from adt_plugin.compare.networks import halves_swapped, place_of
from adt_plugin.core.errors import ConfigError

CLIP_L, CLIP_G = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
CLIP_H = "stabilityai/stable-diffusion-2"
T5 = "google/t5-v1_1-xxl"

FEWEST_WORDS = 26
"""Of a tokenizer that knows the letters at least."""

PREFIXES = ("model.diffusion_model.", "first_stage_model.", "vae.")


@dataclass(frozen=True)
class Parts:
    """Files beside the model, named as sd-scripts names them.

    Attributes:
        vae: replaces the model's own; for FLUX this is `--ae`.
        clip_l, clip_g, t5xxl: text encoders of SD3 and FLUX.
        tokenizers: folder of tokenizers, as `--tokenizer_cache_dir` of sd-scripts fills it; None for the hub's cache.
        config: diffusers folder that describes a single file of unusual sizes; None for the published ones.
        v_parameterization: whether the model predicts v.
    """

    vae: Path | None = None
    clip_l: Path | None = None
    clip_g: Path | None = None
    t5xxl: Path | None = None
    tokenizers: Path | None = None
    config: Path | None = None
    v_parameterization: bool = False

    def files(self) -> list[Path]:
        """Return the files that are given."""
        return [path for path in (self.vae, self.clip_l, self.clip_g, self.t5xxl) if path is not None]


def load_pipeline(flag: str, model: Model, parts: Parts, dtype: torch.dtype) -> Any:
    """Load a model as a pipeline of diffusers on the CPU.

    Args:
        flag: how the user named it, for messages.
        model: what `identify` found.
        parts: files beside it.
        dtype: of the weights.

    Raises:
        ConfigError: a part is missing or cannot be read.
    """
    try:
        loader = _load_folder if model.path.is_dir() else LOADERS[model.family.name]
        pipeline = loader(model, parts, dtype)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{flag}: {model.path} could not be loaded as {model.family.title} ({reason}): if it has unusual sizes, give a "
            "diffusers folder of the same kind by --model_config."
        ) from error
    if parts.vae is not None and model.family.name in ("sd", "sdxl"):
        pipeline.vae = load_vae(parts.vae, dtype, pipeline.vae.config.scaling_factor, None)
    if model.family.name == "sdxl":
        pipeline.tokenizer_2.pad_token_id = 0  # as sd-scripts has it, whatever the folder says
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the argument that asks diffusers for weights of a dtype; version 0.40 renamed it."""
    import diffusers

    renamed = tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 40)
    return {"dtype" if renamed else "torch_dtype": dtype}


def _load_folder(model: Model, parts: Parts, dtype: torch.dtype) -> Any:
    import diffusers

    without = {"safety_checker": None, "requires_safety_checker": False} if model.family.name == "sd" else {}
    kind = getattr(diffusers, model.family.pipeline)
    return kind.from_pretrained(model.path, **in_dtype(dtype), use_safetensors=True, local_files_only=True, **without)


# Single files of SD and SDXL: diffusers' own conversion, with configurations that need no network


def _load_sd(model: Model, parts: Parts, dtype: torch.dtype) -> Any:
    given: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    kind = "sd2" if model.second else "sd1"
    if parts.config is None:
        given["tokenizer"] = tokenizer(CLIP_H if model.second else CLIP_L, parts)
    return _from_single_file(model, parts, dtype, kind, given)


def _load_sdxl(model: Model, parts: Parts, dtype: torch.dtype) -> Any:
    given: dict[str, Any] = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    if parts.config is None:
        given |= {"tokenizer": tokenizer(CLIP_L, parts), "tokenizer_2": tokenizer(CLIP_G, parts)}
    return _from_single_file(model, parts, dtype, "sdxl", given)


def _from_single_file(model: Model, parts: Parts, dtype: torch.dtype, kind: str, given: dict[str, Any]) -> Any:
    import diffusers

    with TemporaryDirectory() as temporary:
        folder = parts.config or write_configs(Path(temporary), configs.PIPELINES[kind])
        return getattr(diffusers, model.family.pipeline).from_single_file(
            str(model.path), config=str(folder), **in_dtype(dtype), local_files_only=True, **given
        )


def write_configs(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write configuration files, path within the folder -> content, and return the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


# Single files of SD3 and FLUX: the denoiser, its companions beside it or inside


def _load_flux(model: Model, parts: Parts, dtype: torch.dtype) -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    tensors = read(model.path)
    transformer = load_denoiser(FluxTransformer2DModel, sizes.flux_config, layouts.FLUX, without_prefix(tensors), dtype)
    shifts = configs.FLUX_DEV if transformer.config.guidance_embeds else configs.FLUX_SCHNELL
    return FluxPipeline(
        scheduler=_flow_scheduler(**shifts),
        vae=load_vae(_needed(parts.vae, "--ae", "FLUX.1"), dtype, **configs.FLUX_LATENTS),
        text_encoder=load_clip(read(_needed(parts.clip_l, "--clip_l", "FLUX.1")), dtype, projection=False),
        tokenizer=tokenizer(CLIP_L, parts),
        text_encoder_2=load_t5(read(_needed(parts.t5xxl, "--t5xxl", "FLUX.1")), dtype),
        tokenizer_2=tokenizer(T5, parts),
        transformer=transformer,
    )


def _load_sd3(model: Model, parts: Parts, dtype: torch.dtype) -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    tensors = read(model.path)
    clip_l, clip_g = (
        _inside_or_beside(tensors, f"text_encoders.{name}.transformer.", getattr(parts, name), f"--{name}")
        for name in ("clip_l", "clip_g")
    )
    t5 = _inside_or_beside(tensors, "text_encoders.t5xxl.transformer.", parts.t5xxl, None)
    vae = read(parts.vae) if parts.vae else {k: v for k, v in tensors.items() if k.startswith("first_stage_model.")}
    if not vae:
        raise ConfigError(f"{model.path} has no VAE: give one by --vae.")
    denoiser = without_prefix({key: tensor for key, tensor in tensors.items() if "joint_blocks" in key or _is_sd3(key)})
    return StableDiffusion3Pipeline(
        transformer=load_denoiser(SD3Transformer2DModel, sizes.sd3_config, layouts.SD3, denoiser, dtype),
        scheduler=_flow_scheduler(shift=3.0),
        vae=_vae_of(vae, dtype, **configs.SD3_LATENTS),
        text_encoder=load_clip(clip_l, dtype, projection=True),
        tokenizer=tokenizer(CLIP_L, parts),
        text_encoder_2=load_clip(clip_g, dtype, projection=True),
        tokenizer_2=tokenizer(CLIP_G, parts),
        text_encoder_3=load_t5(t5, dtype) if t5 else None,
        tokenizer_3=tokenizer(T5, parts) if t5 else None,
    )


def _is_sd3(key: str) -> bool:
    return not key.startswith(("first_stage_model.", "text_encoders."))


def _flow_scheduler(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def _needed(path: Path | None, flag: str, title: str) -> Path:
    if path is None:
        raise ConfigError(f"a single file of {title} holds the denoiser alone: give the rest by {flag}, as for training.")
    return path


def _inside_or_beside(tensors: Mapping[str, Tensor], prefix: str, path: Path | None, flag: str | None) -> dict[str, Tensor]:
    """Return a text encoder's tensors from its own file, or else from inside the checkpoint; empty where it may be missing."""
    if path is not None:
        return read(path)
    found = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if not found and flag is not None:
        raise ConfigError(f"the checkpoint of SD3 holds no such text encoder: give it by {flag}, as for training.")
    return found


def load_denoiser(
    kind: Any,
    config_of: Callable[[sizes.Shapes], dict[str, Any]],
    layout: layouts.Layout,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Any:
    """Build a transformer of diffusers and fill it from a checkpoint under the original names.

    Raises:
        ConfigError: the checkpoint lacks a parameter of the model, or holds another.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = kind(**config_of(tensors))
    wanted = {name for name, _ in model.named_parameters()}
    state: dict[str, Tensor] = {}
    left = set(tensors)
    names = frozenset(name for name, _ in model.named_modules())
    for original, row in layouts.expanded(layout, names):
        for suffix, part in (("weight", "weight"), ("bias", "bias"), ("scale", "weight")):
            if (tensor := tensors.get(f"{original}.{suffix}")) is not None:
                left.discard(f"{original}.{suffix}")
                state |= _rows_of(model, row, part, tensor.to(dtype))
    for name in left & {"pos_embed"}:
        state["pos_embed.pos_embed"] = tensors[name].to(dtype)
        left.discard(name)
    if wanted - set(state) or left:
        strange = sorted(wanted - set(state)) or sorted(left)
        raise ConfigError(f"the checkpoint does not fit {kind.__name__} of diffusers, for example at {strange[0]}.")
    model.load_state_dict(state, assign=True)
    return model.eval()


def _rows_of(model: Any, row: tuple[str, ...], part: str, tensor: Tensor) -> dict[str, Tensor]:
    """Split an original parameter into those of diffusers' layers."""
    place = place_of(model, row)
    rows = halves_swapped(tensor) if place.swapped else tensor
    parts = rows.split([len(getattr(layer, part)) for layer in place.layers])
    return {f"{name}.{part}": piece.clone() for name, piece in zip(row, parts, strict=True)}


# Parts


def read(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    from safetensors import SafetensorError  # type: ignore[attr-defined]
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors ({error}).") from error


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the prefix of a part in a whole checkpoint taken off their names."""
    found = {}
    for key, tensor in tensors.items():
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
        found[key[len(prefix) :]] = tensor
    return found


def load_vae(path: Path, dtype: torch.dtype, scaling: float, shift: float | None) -> Any:
    """Load an autoencoder from a file under latent diffusion's names, or from a diffusers folder."""
    from diffusers import AutoencoderKL

    if path.is_dir():
        return AutoencoderKL.from_pretrained(path, **in_dtype(dtype), use_safetensors=True, local_files_only=True)
    return _vae_of(read(path), dtype, scaling, shift)


def _vae_of(tensors: Mapping[str, Tensor], dtype: torch.dtype, scaling: float, shift: float | None) -> Any:
    from diffusers import AutoencoderKL

    tensors = without_prefix(tensors)
    with TemporaryDirectory() as temporary:
        config = sizes.vae_config(tensors, scaling, shift)
        folder = write_configs(Path(temporary), {"config.json": {"_class_name": "AutoencoderKL", **config}})
        prefixed = {f"first_stage_model.{key}": tensor for key, tensor in tensors.items()}
        return AutoencoderKL.from_single_file(prefixed, config=str(folder), **in_dtype(dtype), local_files_only=True)


def load_clip(tensors: dict[str, Tensor], dtype: torch.dtype, projection: bool) -> Any:
    """Build a CLIP text encoder in transformers' layout; a file without a projection means the identity."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".position_ids") and key != "logit_scale"}
    config = CLIPTextConfig(**sizes.clip_config(tensors))
    if projection:
        tensors.setdefault("text_projection.weight", torch.eye(config.hidden_size))
    else:
        tensors.pop("text_projection.weight", None)
    model: Any = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    if not hasattr(model, "text_model"):  # since transformers 5; files have the names from before
        tensors = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    return _filled(model, tensors, dtype)


def load_t5(tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Build a T5 1.1 encoder in transformers' layout."""
    from accelerate import init_empty_weights
    from transformers import T5Config, T5EncoderModel

    if "shared.weight" not in tensors:
        tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"]
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    with init_empty_weights():
        model = T5EncoderModel(T5Config(**sizes.t5_config(tensors)))
    return _filled(model, tensors, dtype)


def _filled(model: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    model.load_state_dict({key: tensor.to(dtype) for key, tensor in tensors.items()}, assign=True)
    return model.to(dtype).eval()


def tokenizer(name: str, parts: Parts) -> Any:
    """Load a published tokenizer from the user's folder or from the hub's cache, where training has left it.

    Raises:
        ConfigError: it is in neither.
    """
    import transformers

    kind: Any = transformers.T5TokenizerFast if name == T5 else transformers.CLIPTokenizer
    local = parts.tokenizers / name.replace("/", "_") if parts.tokenizers else None
    try:
        if local is not None and local.is_dir():
            found = kind.from_pretrained(local, local_files_only=True)
        else:
            found = kind.from_pretrained(name, **({"subfolder": "tokenizer"} if name == CLIP_H else {}))
        if len(set(found.get_vocab()) - set(found.all_special_tokens)) < FEWEST_WORDS:
            raise ValueError("it has no words")  # transformers 5 makes an empty one where it finds no files
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the tokenizer {name} is not in the cache that sd-scripts fills when it trains such a model: train or sample once "
            "with network access, or give the folder of sd-scripts' --tokenizer_cache_dir by --tokenizer_cache_dir."
        ) from error
    if name == CLIP_G:
        found.pad_token_id = 0  # "!", as SDXL and SD3 were trained
    return found


LOADERS: dict[str, Callable[[Model, Parts, torch.dtype], Any]] = {
    "sd": _load_sd,
    "sdxl": _load_sdxl,
    "sd3": _load_sd3,
    "flux": _load_flux,
}
"""Family -> loader of its single files."""
