"""Random LoRA and LyCORIS files in sd-scripts' format, for the layers of a model that are named; the files beside a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adt_plugin.compare.models import Parts
from tinyhost.models import HostModel

RANK = 2


def write_network(
    path: Path, layers: Mapping[str, tuple[int, ...]], kind: str = "lora", seed: int = 0, scale: float = 0.1
) -> Path:
    """Write a network of one kind that changes layers: name in the file -> shape of the layer's weight."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in layers.items():
        parts = KINDS[kind](shape, generator)
        tensors |= {f"{name}.{key}": tensor * (1 if key in ("alpha", "dora_scale") else scale) for key, tensor in parts.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def lora(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    rows, columns, *kernel = shape
    up = torch.randn(rows, RANK, *(1 for _ in kernel), generator=generator)
    down = torch.randn(RANK, columns, *kernel, generator=generator)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}


def loha(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    sides = {"hada_w1_a": (rows, RANK), "hada_w1_b": (RANK, columns), "hada_w2_a": (rows, RANK), "hada_w2_b": (RANK, columns)}
    return {key: torch.randn(size, generator=generator) for key, size in sides.items()} | {"alpha": torch.tensor(1.0)}


def lokr(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    rows, columns = shape[:2]
    one, two = torch.randn(2, 2, generator=generator), torch.randn(rows // 2, columns // 2, *shape[2:], generator=generator)
    return {"lokr_w1": one, "lokr_w2": two, "alpha": torch.tensor(1.0)}


def dora(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    scale = torch.rand(shape[0], *(1 for _ in shape[1:]), generator=generator) + 0.5
    return {**lora(shape, generator), "dora_scale": scale}


KINDS = {"lora": lora, "loha": loha, "lokr": lokr, "dora": dora}


def attention_layers(unet: nn.Module, prefix: str = "lora_unet") -> dict[str, tuple[int, ...]]:
    """Layers of the attention of a diffusers UNet, as sd-scripts names those of SD 1.x."""
    return {
        f"{prefix}_{name.replace('.', '_')}": tuple(layer.weight.shape)
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear) and ".attn" in name
    }


def parts_of(model: HostModel) -> Parts:
    """The files beside a tiny model, as the kit writes them."""
    folder = model.checkpoint.parent
    files = {name: folder / f"{name}.safetensors" for name in ("clip_l", "clip_g", "t5xxl")}
    found = {name: path for name, path in files.items() if path.is_file()}
    vae = folder / "ae.safetensors"
    return Parts(vae=vae if vae.is_file() else None, tokenizers=model.tokenizers, **found)
