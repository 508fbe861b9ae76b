"""Where the layers of original checkpoints lie in diffusers' models, as data.

sd-scripts trains denoisers under their original names and saves LoRAs under these; diffusers has other names, and splits
layers that the originals fuse. A row of a table maps an original layer to the layers of diffusers whose rows, one below the
other, are its rows; `#` stands for a block's number. The same tables load a checkpoint and find where a LoRA belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Layout = Mapping[str, tuple[str, ...]]

FLUX: Layout = {
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "txt_in": ("context_embedder",),
    "img_in": ("x_embedder",),
    "double_blocks.#.img_mod.lin": ("transformer_blocks.#.norm1.linear",),
    "double_blocks.#.txt_mod.lin": ("transformer_blocks.#.norm1_context.linear",),
    "double_blocks.#.img_attn.qkv": tuple(f"transformer_blocks.#.attn.to_{part}" for part in "qkv"),
    "double_blocks.#.txt_attn.qkv": tuple(f"transformer_blocks.#.attn.add_{part}_proj" for part in "qkv"),
    "double_blocks.#.img_attn.norm.query_norm": ("transformer_blocks.#.attn.norm_q",),
    "double_blocks.#.img_attn.norm.key_norm": ("transformer_blocks.#.attn.norm_k",),
    "double_blocks.#.txt_attn.norm.query_norm": ("transformer_blocks.#.attn.norm_added_q",),
    "double_blocks.#.txt_attn.norm.key_norm": ("transformer_blocks.#.attn.norm_added_k",),
    "double_blocks.#.img_attn.proj": ("transformer_blocks.#.attn.to_out.0",),
    "double_blocks.#.txt_attn.proj": ("transformer_blocks.#.attn.to_add_out",),
    "double_blocks.#.img_mlp.0": ("transformer_blocks.#.ff.net.0.proj",),
    "double_blocks.#.img_mlp.2": ("transformer_blocks.#.ff.net.2",),
    "double_blocks.#.txt_mlp.0": ("transformer_blocks.#.ff_context.net.0.proj",),
    "double_blocks.#.txt_mlp.2": ("transformer_blocks.#.ff_context.net.2",),
    "single_blocks.#.modulation.lin": ("single_transformer_blocks.#.norm.linear",),
    "single_blocks.#.linear1": (
        *(f"single_transformer_blocks.#.attn.to_{part}" for part in "qkv"),
        "single_transformer_blocks.#.proj_mlp",
    ),
    "single_blocks.#.linear2": ("single_transformer_blocks.#.proj_out",),
    "single_blocks.#.norm.query_norm": ("single_transformer_blocks.#.attn.norm_q",),
    "single_blocks.#.norm.key_norm": ("single_transformer_blocks.#.attn.norm_k",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}

SD3: Layout = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "context_embedder": ("context_embedder",),
    "joint_blocks.#.x_block.adaLN_modulation.1": ("transformer_blocks.#.norm1.linear",),
    "joint_blocks.#.context_block.adaLN_modulation.1": ("transformer_blocks.#.norm1_context.linear",),
    "joint_blocks.#.x_block.attn.qkv": tuple(f"transformer_blocks.#.attn.to_{part}" for part in "qkv"),
    "joint_blocks.#.context_block.attn.qkv": tuple(f"transformer_blocks.#.attn.add_{part}_proj" for part in "qkv"),
    "joint_blocks.#.x_block.attn.ln_q": ("transformer_blocks.#.attn.norm_q",),
    "joint_blocks.#.x_block.attn.ln_k": ("transformer_blocks.#.attn.norm_k",),
    "joint_blocks.#.context_block.attn.ln_q": ("transformer_blocks.#.attn.norm_added_q",),
    "joint_blocks.#.context_block.attn.ln_k": ("transformer_blocks.#.attn.norm_added_k",),
    "joint_blocks.#.x_block.attn.proj": ("transformer_blocks.#.attn.to_out.0",),
    "joint_blocks.#.context_block.attn.proj": ("transformer_blocks.#.attn.to_add_out",),
    "joint_blocks.#.x_block.attn2.qkv": tuple(f"transformer_blocks.#.attn2.to_{part}" for part in "qkv"),
    "joint_blocks.#.x_block.attn2.ln_q": ("transformer_blocks.#.attn2.norm_q",),
    "joint_blocks.#.x_block.attn2.ln_k": ("transformer_blocks.#.attn2.norm_k",),
    "joint_blocks.#.x_block.attn2.proj": ("transformer_blocks.#.attn2.to_out.0",),
    "joint_blocks.#.x_block.mlp.fc1": ("transformer_blocks.#.ff.net.0.proj",),
    "joint_blocks.#.x_block.mlp.fc2": ("transformer_blocks.#.ff.net.2",),
    "joint_blocks.#.context_block.mlp.fc1": ("transformer_blocks.#.ff_context.net.0.proj",),
    "joint_blocks.#.context_block.mlp.fc2": ("transformer_blocks.#.ff_context.net.2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}

SWAPPED_CLASSES = ("AdaLayerNormContinuous",)
"""Modulations whose two halves diffusers keep the other way round: scale before shift."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Layers of a residual block: diffusers' name -> latent diffusion's."""

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""Layers of a UNet outside of its blocks: diffusers' name -> latent diffusion's."""

MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}


def unet_layout(unet: Any) -> Layout:
    """Return original layer -> layer for every layer of a diffusers UNet, under latent diffusion's names and under its own.

    sd-scripts calls the layers of SD 1.x and 2.x as diffusers does, and those of SDXL as latent diffusion does.
    """
    names = [name for name, _ in unet.named_modules() if name]
    attentive = [bool(getattr(block, "attentions", None)) for block in unet.up_blocks]
    original = {ldm_name(name, unet.config.layers_per_block, attentive): name for name in names}
    return {found: (name,) for found, name in {**{name: name for name in names}, **original}.items() if found}


def ldm_name(name: str, layers: int, attentive: list[bool]) -> str:
    """Return what latent diffusion calls a layer of a diffusers UNet; an empty string for what it does not name.

    Args:
        name: of the layer in diffusers, such as `down_blocks.1.resnets.0.conv1`.
        layers: residual blocks in a block of the way down; one more are on the way up.
        attentive: whether each block of the way up has attention.
    """
    if name in UNET_ENDS:
        return UNET_ENDS[name]
    if found := re.fullmatch(r"mid_block\.(resnets\.\d|attentions\.\d)(?:\.(.+))?", name):
        return _joined("middle_block", MIDDLE[found[1]], _inner(found[1], found[2]))
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.((?:resnets|attentions))\.(\d+)(?:\.(.+))?", name):
        way, block, kind, layer = found[1], int(found[2]), found[3], int(found[4])
        number = block * (layers + 1) + layer + (way == "down")
        stack = "input_blocks" if way == "down" else "output_blocks"
        return _joined(stack, number, int(kind == "attentions"), _inner(kind, found[5]))
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", name):
        return _joined("input_blocks", (int(found[1]) + 1) * (layers + 1), "0.op")
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", name):
        block = int(found[1])
        return _joined("output_blocks", (block + 1) * (layers + 1) - 1, 1 + attentive[block], "conv")
    return ""


def _inner(kind: str, rest: str | None) -> str:
    """Return the name of a layer within a residual block or a transformer; the latter are named alike."""
    return RESNET.get(rest or "", rest or "") if kind.startswith("resnets") else rest or ""


def _joined(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def expanded(layout: Layout, names: frozenset[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the rows of a table with numbers for `#`, as far as a model has the layers.

    Args:
        layout: a table.
        names: of the layers of the model in diffusers.
    """
    for original, places in layout.items():
        if "#" not in original:
            blocks = [""]
        else:
            pattern = re.compile(re.escape(places[0]).replace(r"\#", r"(\d+)"))
            blocks = sorted((found[1] for found in map(pattern.fullmatch, names) if found), key=int)
        for block in blocks:
            row = tuple(place.replace("#", block) for place in places)
            if names.issuperset(row):
                yield original.replace("#", block), row
