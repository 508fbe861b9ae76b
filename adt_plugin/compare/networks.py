"""LoRA and LyCORIS files of sd-scripts: merged into a pipeline's weights for a while, and taken out without a trace.

The files name layers as sd-scripts does: `lora_unet_...` for the denoiser and `lora_te_...` for text encoders, with `_` for
`.`. LyCORIS' own modules compute the merged weights of LoRA, LoCon, DoRA, full, norms, its OFT; `products.py` those of LoHa and
LoKr, and `oft.py` those of sd-scripts' own OFT, under `oft_unet_...`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.compare import layouts, oft, products
from adt_plugin.core.errors import ConfigError

TEXT_ENCODERS = {
    "sd": {"lora_te": "text_encoder", "lora_te1": "text_encoder"},
    "sdxl": {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2"},
    "sd3": {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2", "lora_te3": "text_encoder_3"},
    "flux": {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2", "lora_te3": "text_encoder_2"},  # T5: LyCORIS says te2
}
"""Family -> prefix in a file -> part of the pipeline."""

SIGNS = (
    ("_unet_double_blocks_", "flux"),
    ("_unet_single_blocks_", "flux"),
    ("_unet_joint_blocks_", "sd3"),
    ("_unet_input_blocks_", "sdxl"),
    ("_unet_output_blocks_", "sdxl"),
    ("lora_te_text_model_", "sd"),
)
"""Part of the name of a layer -> the family that alone has such layers, as sd-scripts names them."""

DENOISERS = ("lora_unet", oft.PREFIX)


@dataclass(frozen=True)
class Place:
    """Where one layer of the original model lies.

    Attributes:
        layers: of diffusers; their rows one below the other are the original's.
        swapped: whether diffusers keeps the two halves of the rows the other way round.
    """

    layers: tuple[nn.Module, ...]
    swapped: bool = False

    def read(self, name: str) -> Tensor:
        """Return the original's parameter `name` in float32 on the CPU."""
        rows = torch.cat([getattr(layer, name).detach().to("cpu", torch.float32) for layer in self.layers])
        return halves_swapped(rows) if self.swapped else rows

    def write(self, name: str, rows: Tensor) -> None:
        """Write the original's parameter `name` into the layers, each in its own precision."""
        rows = halves_swapped(rows) if self.swapped else rows
        parameters = [getattr(layer, name) for layer in self.layers]
        for parameter, part in zip(parameters, rows.split([len(parameter) for parameter in parameters]), strict=True):
            parameter.data.copy_(part)

    def stand_in(self) -> nn.Module:
        """Return a layer with the original's parameters in float32 on the CPU, for LyCORIS to merge into."""
        first = self.layers[0]
        if len(self.layers) == 1 and not self.swapped:
            return copy.deepcopy(first).to("cpu", torch.float32)
        weight = self.read("weight")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=first.bias is not None)
        layer.weight.data.copy_(weight)
        if first.bias is not None:
            layer.bias.data.copy_(self.read("bias"))
        return layer


def halves_swapped(rows: Tensor) -> Tensor:
    """Exchange the upper and the lower half of `(2 n, ...)`."""
    return torch.cat(rows.chunk(2)[::-1])


def place_of(model: nn.Module, names: tuple[str, ...]) -> Place:
    """Return the place of the layers of these names in a model."""
    parents = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    swapped = type(parents[0]).__name__ in layouts.SWAPPED_CLASSES
    return Place(tuple(model.get_submodule(name) for name in names), swapped)


def places_of(pipeline: Any, family: str) -> dict[str, Place]:
    """Map every name that a file may have for a layer to the layer's place in a pipeline."""
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    if family in ("sd", "sdxl"):
        rows = dict(layouts.unet_layout(denoiser))
    else:
        names = frozenset(name for name, _ in denoiser.named_modules())
        rows = dict(layouts.expanded(layouts.SD3 if family == "sd3" else layouts.FLUX, names))
    found = {
        f"{prefix}_{name.replace('.', '_')}": place_of(denoiser, row) for prefix in DENOISERS for name, row in rows.items()
    }
    for prefix, part in TEXT_ENCODERS[family].items():
        encoder = getattr(pipeline, part, None)
        for name, layer in encoder.named_modules() if encoder is not None else ():
            for known in names_in_files(encoder, name):
                found[f"{prefix}_{known.replace('.', '_')}"] = Place((layer,))
    return found


def names_in_files(encoder: Any, name: str) -> set[str]:
    """Return the names that a file may have for a text encoder's module.

    transformers' CLIPTextModel keeps its layers in a `text_model` before version 5, and itself since.
    """
    if not type(encoder).__name__.startswith("CLIPTextModel"):
        return {name}
    bare = name.removeprefix("text_model.")
    return {name, bare, f"text_model.{bare}"}


def read_network(flag: str, path: Path) -> dict[str, Tensor]:
    """Read a network file.

    Raises:
        ConfigError: it is no safetensors file, or not in sd-scripts' format.
    """
    from safetensors import SafetensorError  # type: ignore[attr-defined]
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{flag}: {path} cannot be read as safetensors ({error}).") from error
    check_network_names(flag, path, list(tensors))
    return dict(tensors)


def check_network_names(flag: str, path: Path, names: list[str]) -> None:
    """Raise ConfigError unless the names of a file's tensors are those of a network of sd-scripts."""
    prefixes = (*DENOISERS, "lora_te")
    strange = [name for name in names if not name.startswith(prefixes)]
    if strange or not names:
        found = f"has {strange[0]}" if strange else "is empty"
        raise ConfigError(
            f"{flag}: {path} is no LoRA or LyCORIS file in sd-scripts' format ({found}): give a file that sd-scripts or "
            "LyCORIS saved, and a whole model by --checkpoint."
        )


def family_of(names: Iterable[str]) -> str | None:
    """Return the family of models that a network is of, as the names of its layers tell; None where they leave it open."""
    return next((family for name in names for sign, family in SIGNS if sign in name), None)


def check_weights(flag: str, path: Path, places: Mapping[str, Place]) -> None:
    """Read a whole network before any image is made.

    Raises:
        ConfigError: it changes layers that the model does not have, or that have another width, or a weight is not finite.
    """
    grouped = by_layer(read_network(flag, path))
    check_places(flag, path, grouped, places)
    for name, tensors in grouped.items():
        broken = next((key for key, tensor in tensors.items() if not tensor.isfinite().all()), None)
        if broken is not None:
            raise ConfigError(
                f"{flag}: {path} has weights that are not finite (such as {broken}), so its training has diverged: give a file "
                "that was saved earlier in that run."
            )
        down, weight = tensors.get(f"{name}.lora_down.weight"), getattr(places[name].layers[0], "weight", None)
        if down is not None and weight is not None and down.shape[1] != weight.shape[1]:
            raise misfit(flag, name, f"it reads {down.shape[1]} channels, the layer has {weight.shape[1]}")


def misfit(flag: str, name: str, why: str) -> ConfigError:
    """Return the error of a network's layer that is of another size than the base's."""
    return ConfigError(f"{flag}: {name} does not fit this base ({why}): give the --base that it was trained on.")


@contextmanager
def merged(pipeline: Any, family: str, flag: str, path: Path, multiplier: float = 1.0) -> Iterator[int]:
    """Merge a network into a pipeline for the block; afterwards every weight is bit by bit what it was.

    Args:
        pipeline: of diffusers.
        family: `sd`, `sdxl`, `sd3` or `flux`.
        flag: how the user named the file, for messages.
        path: of the file.
        multiplier: of the network's change, 1 for all of it.

    Yields:
        How many layers were changed.

    Raises:
        ConfigError: the file cannot be read, or does not fit the model.
    """
    places = places_of(pipeline, family)
    grouped = by_layer(read_network(flag, path))
    check_places(flag, path, grouped, places)
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for name, tensors in grouped.items():
                _merge(flag, name, tensors, places[name], multiplier, kept)
        yield len(grouped)
    finally:
        for parameter, before in reversed(kept):
            parameter.data.copy_(before)


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group a file's tensors by the layer that they change: name of the layer -> full name -> tensor."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        grouped.setdefault(key.partition(".")[0], {})[key] = tensor
    for name, parts in grouped.items():
        down = parts.get(f"{name}.lora_down.weight")
        if down is not None and f"{name}.alpha" not in parts:
            parts[f"{name}.alpha"] = torch.tensor(float(len(down)))  # no alpha is the rank: no scaling
    return grouped


def check_places(flag: str, path: Path, grouped: Mapping[str, Any], places: Mapping[str, Place]) -> None:
    """Raise ConfigError if a file changes layers that the model does not have."""
    lost = [name for name in grouped if name not in places]
    if lost:
        raise ConfigError(
            f"{flag}: {path} changes {len(grouped)} layers, {len(lost)} of which this base does not have (such as {lost[0]}): "
            "give the --base that it was trained on."
        )


def _merge(
    flag: str, name: str, tensors: dict[str, Tensor], place: Place, multiplier: float, kept: list[tuple[Tensor, Tensor]]
) -> None:
    """Merge one layer's change, after keeping what the layer was."""
    layer = place.stand_in()
    try:
        _change(flag, name, {key: tensor.float() for key, tensor in tensors.items()}, layer, multiplier)
    except ConfigError:
        raise
    except (RuntimeError, ValueError, KeyError) as error:  # shapes that differ, or a part that is missing
        raise misfit(flag, name, str(error).splitlines()[0]) from error
    for part in ("weight", "bias"):
        if getattr(layer, part, None) is not None:
            if any(getattr(own, part, None) is None for own in place.layers):
                raise ConfigError(f"{flag}: {name} adds a bias to a layer without one: merge it into a --checkpoint first.")
            parameters_before = [getattr(own, part) for own in place.layers]
            kept.extend((parameter, parameter.detach().to("cpu", copy=True)) for parameter in parameters_before)
            place.write(part, getattr(layer, part).detach())


def _change(flag: str, name: str, tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> None:
    """Change a stand-in of a layer as the file says."""
    kinds = {key.partition(".")[2]: tensor for key, tensor in tensors.items()}
    weight: Any = layer.weight
    if name.startswith(oft.PREFIX):
        weight.copy_(oft.rotated(weight, kinds, multiplier))
        return
    lengths = kinds.pop("dora_scale", None)
    strength = multiplier if lengths is None else 1.0
    if products.is_product(kinds):
        weight.add_(strength * products.change(kinds, weight.shape))
    else:
        _change_by_lycoris(flag, name, kinds, layer, strength)
    if lengths is not None:
        weight.copy_(rescaled(weight, lengths, multiplier))


def rescaled(weight: Tensor, lengths: Tensor, multiplier: float) -> Tensor:
    """Give a weight's rows, or its columns, the lengths that DoRA has learnt (arXiv 2402.09353, eq. 5).

    Args:
        weight: `(rows, columns, ...)`, changed.
        lengths: `(rows, 1, ...)` or `(1, columns, ...)`: LyCORIS has saved both.
        multiplier: of the rescaling, 1 for all of it.
    """
    others = [axis for axis, size in enumerate(lengths.shape) if size == 1]
    norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return weight * (1 + multiplier * (lengths / (norms + torch.finfo(weight.dtype).eps) - 1))


def _change_by_lycoris(flag: str, name: str, kinds: dict[str, Tensor], layer: nn.Module, multiplier: float) -> None:
    """Change a stand-in of a layer by the module of LyCORIS that knows such tensors."""
    modules = lycoris_modules()
    try:
        kind, parameters = modules.get_module({f"{name}.{key}": tensor for key, tensor in kinds.items()}, name)
        change = None if kind is None else modules.make_module(kind, parameters, name, layer)
    except TypeError:  # LyCORIS reads no IA3, and takes a missing alpha for a number
        change = None
    if change is None:
        found = ", ".join(sorted(kinds))
        raise ConfigError(
            f"{flag}: {name} is of a kind that LyCORIS cannot merge ({found}): merge it into a --checkpoint first."
        )
    change.merge_to(multiplier)


def lycoris_modules() -> Any:
    """Import LyCORIS' modules.

    Raises:
        ConfigError: LyCORIS is not installed.
    """
    try:
        import lycoris.modules
    except ImportError as error:
        raise ConfigError(
            f"--lora needs lycoris-lora, which could not be imported ({error}): pip install lycoris-lora."
        ) from error
    return lycoris.modules
