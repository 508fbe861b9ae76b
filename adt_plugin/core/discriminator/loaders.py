"""Sources of frozen backbones, one loader each; this is the only file that a new source touches.

A loader takes a model's name, the chosen blocks and a dtype, and returns a `FeatureNetwork`. `LOADERS` maps the scheme of
`--adt_backbone scheme:name` to it. Its library is imported inside the loader, so that only the one in use is needed.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError  # type: ignore[attr-defined]
from torch import Tensor, nn

from adt_plugin.core.errors import ConfigError
from adt_plugin.core.hub import download_command
from adt_plugin.core.rng import preserved_rng


class FeatureNetwork(Protocol):
    """A torch module that turns images into feature maps. Images have sides that are multiples of `patch_size`.

    Attributes:
        channels: C_i of each feature map.
        patch_size: side of a patch in pixels.
        image_size: side in pixels of the square images that it was made for; None if it has no preference.
    """

    channels: list[int]
    patch_size: int
    image_size: int | None

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return one feature map `(B, C_i, h_i, w_i)` per chosen block for images `(B, 3, H, W)` in [-1, 1]."""
        ...


Loader = Callable[[str, Sequence[int] | None, torch.dtype], FeatureNetwork]
"""`(name without its scheme, block numbers from 1 or None for four of them, dtype of the weights) -> network`."""


class NormalizedNetwork(nn.Module):
    """A vision transformer and the normalisation of its images.

    Args:
        model: of a library.
        mean, std: per-channel normalisation of images in [0, 1].
        channels, patch_size, image_size: as in `FeatureNetwork`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        mean: Sequence[float],
        std: Sequence[float],
        channels: Sequence[int],
        patch_size: int,
        image_size: int | None,
    ) -> None:
        super().__init__()
        self.model, self.channels = model, list(channels)
        self.patch_size, self.image_size = patch_size, image_size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalize(self, images: Tensor) -> Tensor:
        """Return images `(B, 3, H, W)` in [-1, 1] as the pixel values that the model was trained on."""
        return ((images + 1) / 2 - self.mean) / self.std


# Transformers: `--adt_backbone facebook/dinov2-base`, or a folder


class TokenGrids(NormalizedNetwork):
    """A transformers vision model whose chosen blocks' patch tokens are laid out as grids `(B, C, h, w)`.

    Args:
        model: any vision transformer with hidden states (DINOv2 with and without registers, ViT, SigLIP, CLIP).
        mean, std: per-channel normalisation of images in [0, 1], from the model's own processor.
        blocks: block numbers, 1 is the first.
        image_size: side in pixels of the square images that it was made for; None if it has no preference.
    """

    def __init__(
        self, model: Any, mean: Sequence[float], std: Sequence[float], blocks: Sequence[int], image_size: int | None = None
    ) -> None:
        super().__init__(model, mean, std, [model.config.hidden_size] * len(blocks), model.config.patch_size, image_size)
        self.blocks = list(blocks)
        takes_any_size = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.extra: dict[str, Any] = {"interpolate_pos_encoding": True} if takes_any_size else {}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one `(B, C, H / patch_size, W / patch_size)` per block for images `(B, 3, H, W)` in [-1, 1]."""
        states = self.model(pixel_values=self.normalize(images), output_hidden_states=True, **self.extra).hidden_states
        height, width = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        return [self._grid(states[block], height, width) for block in self.blocks]

    @staticmethod
    def _grid(tokens: Tensor, height: int, width: int) -> Tensor:
        patches = tokens[:, -height * width :]  # class and register tokens come first
        return patches.transpose(1, 2).reshape(len(tokens), -1, height, width)


def load_transformers(name: str, blocks: Sequence[int] | None, dtype: torch.dtype) -> TokenGrids:
    """Load a vision transformer with transformers, by hub name or local folder (safetensors only, no code from the hub).

    Raises:
        ConfigError: it cannot be loaded, is not a vision transformer of square patches, or lacks a chosen block.
    """
    import transformers

    auto: Any = transformers  # partly untyped
    _refuse_adapter(auto, name)
    try:
        # Said explicitly: left out, transformers asks on the terminal whether to run a model's own code.
        processor = auto.AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **plain_processor())
        model = auto.AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"--adt_backbone {name} brings code of its own, which is never run: use a model that transformers knows."
            ) from error
        raise _not_loaded(name, Path(name), error) from error
    model = getattr(model, "vision_model", model)  # CLIP and SigLIP carry a text half
    depth, patch_size = getattr(model.config, "num_hidden_layers", None), getattr(model.config, "patch_size", None)
    one_width = not hasattr(model.config, "depths")  # hierarchical networks merge patches on the way
    if not (one_width and isinstance(depth, int) and isinstance(patch_size, int)):
        raise _no_square_patches(name, type(model).__name__)
    chosen = choose_blocks(name, blocks, depth)
    return TokenGrids(model, processor.image_mean, processor.image_std, chosen, processor_size(processor)).to(dtype)


def plain_processor() -> dict[str, Any]:
    """Return the argument that asks transformers for image processors that need no torchvision; version 5 renamed it."""
    return {"use_fast": False} if before_transformers_5() else {"backend": "pil"}


def before_transformers_5() -> bool:
    """Tell whether transformers is older than 5, which renamed and moved some of what is used here."""
    import transformers

    return int(transformers.__version__.split(".")[0]) < 5


def _refuse_adapter(transformers: Any, name: str) -> None:
    """Refuse it before transformers, where peft is installed, loads the base that it names, and weights that may be pickled.

    Raises:
        ConfigError: it is one, or cannot be looked at.
    """
    try:
        found = transformers.utils.find_adapter_config_file(name)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, Path(name), error) from error
    if found is not None:
        raise ConfigError(
            f"--adt_backbone {name} is an adapter (it has an adapter_config.json), not a whole model: merge it into its base "
            "and save that, or use the base."
        )


def processor_size(processor: Any) -> int | None:
    """Return the side in pixels of the images that an image processor makes: of its crop, or else of its resizing."""
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    sizes = [size for size in (crop, getattr(processor, "size", None)) if size]
    return next((int(size[key]) for size in sizes for key in ("height", "shortest_edge") if key in size), None)


# timm: `--adt_backbone timm:vit_small_patch14_dinov2.lvd142m`, `timm:owner/name` on the hub, or `timm:` and a folder

TIMM_WEIGHTS = "model.safetensors"
"""The file of weights beside timm's `config.json`, the only one that is read."""


class TimmGrids(NormalizedNetwork):
    """A timm vision transformer that returns its chosen blocks' patch tokens as grids `(B, C, h, w)`.

    Args:
        model: made with `dynamic_img_size=True`. Blocks after the last chosen one and its head are cut off.
        mean, std: per-channel normalisation of images in [0, 1], from the model's data configuration.
        blocks: block numbers, 1 is the first.
        image_size: side in pixels of the square images that it was made for; None if it has no preference.
    """

    def __init__(
        self, model: Any, mean: Sequence[float], std: Sequence[float], blocks: Sequence[int], image_size: int | None = None
    ) -> None:
        channels = [model.feature_info[block - 1]["num_chs"] for block in blocks]
        super().__init__(model, mean, std, channels, model.patch_embed.patch_size[0], image_size)
        self.blocks = list(blocks)
        self._ascending = sorted(set(blocks))  # the order in which timm returns them, whatever is asked for
        model.prune_intermediate_layers([block - 1 for block in self._ascending], prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one `(B, C, H / patch_size, W / patch_size)` per block for images `(B, 3, H, W)` in [-1, 1]."""
        indices = [block - 1 for block in self._ascending]
        pixels = self.normalize(images)
        maps = self.model.forward_intermediates(pixels, indices=indices, output_fmt="NCHW", intermediates_only=True)
        by_block = dict(zip(self._ascending, maps, strict=True))
        return [by_block[block] for block in self.blocks]


def load_timm(name: str, blocks: Sequence[int] | None, dtype: torch.dtype) -> TimmGrids:
    """Load a vision transformer with timm, by timm's own name, hub name or local folder (safetensors only).

    Raises:
        ConfigError: timm is not installed, or the model cannot be loaded, is not a vision transformer of square patches, or
            lacks a chosen block.
    """
    value = f"timm:{name}"
    timm = _import_timm(value)
    model = _timm_model(timm, value, _timm_folder(timm, name))
    if not _has_square_patches(model):
        raise _no_square_patches(value, type(model).__name__)
    data = timm.data.resolve_model_data_config(model)
    height, width = data["input_size"][-2:]
    chosen = choose_blocks(value, blocks, len(model.blocks))
    return TimmGrids(model, data["mean"], data["std"], chosen, height if height == width else None).to(dtype)


def _import_timm(value: str) -> Any:
    """Return the package timm with its `timm.data`, untyped, so that type checks do not depend on its being installed."""
    try:
        timm = import_module("timm")
        import_module("timm.data")
    except ImportError as error:
        raise ConfigError(
            f"--adt_backbone {value} needs timm, which could not be imported ({error}): pip install timm."
        ) from error
    return timm


def _timm_folder(timm: Any, name: str) -> Path:
    """Return a folder with timm's `config.json` and `model.safetensors`, downloaded unless it is local or cached."""
    from huggingface_hub import snapshot_download

    folder = Path(name)
    if not folder.is_dir():
        repository = name if "/" in name else _timm_repository(timm, name)
        try:
            folder = Path(snapshot_download(repository, allow_patterns=["config.json", TIMM_WEIGHTS]))
        except (OSError, ValueError) as error:
            raise _not_loaded(f"timm:{name}", folder, error, repository) from error
    if not (folder / TIMM_WEIGHTS).is_file():
        raise ConfigError(
            f"--adt_backbone timm:{name} has no {TIMM_WEIGHTS}, and pickled weights are never loaded: use a model that has it, "
            "or save its weights as safetensors."
        )
    return folder


def _timm_repository(timm: Any, name: str) -> str:
    """Return the hub repository of a name that timm knows, such as `vit_small_patch14_dinov2.lvd142m`."""
    known = timm.models.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        nearest = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"--adt_backbone timm:{name} names no model with weights on the hub: did you mean timm:{nearest}? A local folder "
            "and owner/name on the hub do too."
        )
    return str(known.hf_hub_id)


def _timm_model(timm: Any, value: str, folder: Path) -> Any:
    """Return the model of a folder that holds `model.safetensors`, in float32 and for images of any size."""
    # This file and no other: left to itself, older timm unpickles any that lies beside it, and a configuration can name
    # its own.
    weights = {"source": "", "file": str(folder / TIMM_WEIGHTS), "state_dict": None, "custom_load": False}
    options = {"pretrained": True, "pretrained_cfg_overlay": weights, "dynamic_img_size": True}
    try:
        with preserved_rng():  # timm draws initial weights before it loads the true ones
            return timm.create_model(f"local-dir:{folder}", **options)
    except TypeError as error:  # its class takes no `dynamic_img_size`
        kind = f"model that timm cannot make for images of any size ({_first_line(error)})"
        raise _no_square_patches(value, kind) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(value, folder, error) from error


def _has_square_patches(model: Any) -> bool:
    """Return whether every block of a timm model keeps the grid of its square patches."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    strides = {info["reduction"] for info in getattr(model, "feature_info", ())}
    one_grid = {(stride, stride) for stride in strides} == {patch}
    return one_grid and hasattr(model, "blocks") and hasattr(model, "prune_intermediate_layers")


# What loaders share


def choose_blocks(name: str, blocks: Sequence[int] | None, depth: int) -> Sequence[int]:
    """Return the chosen blocks, or four for None.

    Raises:
        ConfigError: a chosen one is beyond the model's depth.
    """
    if blocks is None:
        return four_blocks(depth)
    if max(blocks) > depth:
        raise ConfigError(f"--adt_blocks asks for block {max(blocks)}, but {name} has {depth}: choose from 1 to {depth}.")
    return blocks


def four_blocks(depth: int) -> list[int]:
    """Return the numbers of four blocks, evenly spaced, the last one included."""
    return [max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)]


def _not_loaded(value: str, folder: Path, error: Exception, repository: str | None = None) -> ConfigError:
    """Return the error for a value of `--adt_backbone` that cannot be loaded, with the one thing that is wrong with it.

    Args:
        repository: its name on the hub, where that is another.
    """
    start = f"--adt_backbone {value} could not be loaded"
    if folder.exists():
        return ConfigError(f"{start}, check the folder ({_lacking(folder) or _first_line(error)}).")
    if _means_a_folder(value):
        return ConfigError(f"{start}: there is no such folder.")
    if "Repository Not Found" in str(error) or "not a valid model identifier" in str(error):
        return ConfigError(f"{start}: it is neither a local folder nor a model on the hub.")
    return ConfigError(
        f"{start}: it is not in the cache, and the hub was not reached. Where there is a network, run "
        f"`{download_command(repository or value)}` once, or give a local folder."
    )


def _lacking(folder: Path) -> str:
    """Name the files that every saved model of transformers has and this folder has not; empty where it has them."""
    lacking = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    return f"it has no {' and no '.join(lacking)}" if lacking and not (folder / f"{TIMM_WEIGHTS}.index.json").is_file() else ""


def _means_a_folder(value: str) -> bool:
    r"""Return whether a value cannot be a name on the hub: `/models/dino`, `./dino`, `~/dino`, `C:\models\dino`, `a/b/c`."""
    rest = value.removeprefix("timm:")
    return rest.startswith((".", "/", "~")) or "\\" in rest or rest.count("/") > 1 or rest[1:2] == ":"


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _no_square_patches(value: str, kind: str) -> ConfigError:
    """Return the error for a value of `--adt_backbone` that names another kind of network."""
    return ConfigError(f"--adt_backbone {value} is a {kind}, not a vision transformer with square patches: use a DINOv2.")


LOADERS: dict[str, Loader] = {"transformers": load_transformers, "timm": load_timm}
"""Loader by scheme. Other code may add entries; a scheme has two letters or more, one letter being a drive of Windows."""

DEFAULT_SCHEME = "transformers"
"""The loader of names without a known scheme."""
