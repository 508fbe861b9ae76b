"""LoRA and LyCORIS files: merged as diffusers merges them and as their equations say, and taken out bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adt_plugin.compare.layouts import ldm_name
from adt_plugin.compare.networks import merged
from adt_plugin.core.errors import ConfigError
from tiny_compare import KINDS, attention_layers, write_network

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def weights_of(pipeline: Any) -> dict[str, Tensor]:
    """A copy of every weight of a pipeline."""
    parts = {name: part for name in PARTS if isinstance(part := getattr(pipeline, name, None), nn.Module)}
    return {f"{name}.{key}": value.clone() for name, part in parts.items() for key, value in part.state_dict().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@contextmanager
def with_diffusers(pipeline: Any, path: Path) -> Iterator[None]:
    """The file as diffusers and PEFT merge it; the weights are put back from a copy."""
    before = weights_of(pipeline)
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    try:
        yield
    finally:
        for name in PARTS:
            if isinstance(part := getattr(pipeline, name, None), nn.Module):
                part.load_state_dict({key: before[f"{name}.{key}"] for key in part.state_dict()})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_its_layers_and_is_taken_out_without_a_trace(loaded: Any, tmp_path: Path, kind: str) -> None:
    pipeline = loaded("sd")
    layers = attention_layers(pipeline.unet)
    path = write_network(tmp_path / "n.safetensors", layers, kind)
    before = weights_of(pipeline)
    with merged(pipeline, "sd", "--lora a", path) as count:
        touched = changed(before, weights_of(pipeline))
    assert count == len(layers) == len(touched)
    assert changed(before, weights_of(pipeline)) == set()


def test_it_is_taken_out_after_an_error_too(loaded: Any, tiny_lora: Path) -> None:
    pipeline = loaded("sd")
    before = weights_of(pipeline)
    with pytest.raises(RuntimeError, match="stop"), merged(pipeline, "sd", "--lora a", tiny_lora):
        raise RuntimeError("stop")
    assert changed(before, weights_of(pipeline)) == set()


def test_a_lora_of_denoiser_and_text_encoder_is_what_diffusers_makes_of_it(loaded: Any, tmp_path: Path) -> None:
    """But for the attention of the text encoder: diffusers 0.32 loses it with a warning. It has a test of its own."""
    pipeline = loaded("sd")
    encoder = {
        f"lora_te_{name.replace('.', '_')}": tuple(layer.weight.shape)
        for name, layer in pipeline.text_encoder.named_modules()
        if name.endswith(("fc1", "fc2"))
    }
    path = write_network(tmp_path / "n.safetensors", attention_layers(pipeline.unet) | encoder)
    with merged(pipeline, "sd", "--lora a", path):
        ours = weights_of(pipeline)
    with with_diffusers(pipeline, path):
        theirs = weights_of(pipeline)
    assert changed(weights_of(pipeline), ours) == changed(weights_of(pipeline), theirs)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_sdxl_layers_under_latent_diffusions_names_are_what_diffusers_makes_of_them(loaded: Any, tmp_path: Path) -> None:
    """So sd-scripts saves them; the residual blocks' convolutions and projections are among them."""
    pipeline = loaded("sdxl")
    unet = pipeline.unet
    attentive = [hasattr(block, "attentions") for block in unet.up_blocks]
    layers = {
        f"lora_unet_{ldm_name(name, unet.config.layers_per_block, attentive).replace('.', '_')}": tuple(layer.weight.shape)
        for name, layer in unet.named_modules()
        if ".attn" in name and isinstance(layer, nn.Linear) or name.endswith((".conv1", ".time_emb_proj", ".conv_shortcut"))
    }
    path = write_network(tmp_path / "n.safetensors", layers)
    with merged(pipeline, "sdxl", "--lora a", path) as count:
        ours = weights_of(pipeline)
    with with_diffusers(pipeline, path):
        theirs = weights_of(pipeline)
    assert count == len(changed(weights_of(pipeline), ours)) == len(layers)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def text_model(encoder: Any) -> Any:
    """What has a CLIP's layers: in transformers 5 the encoder itself, unless it has a projection."""
    return getattr(encoder, "text_model", encoder)


@pytest.mark.parametrize("level", ["text_model_", ""], ids=["trained with transformers 4", "trained with transformers 5"])
def test_the_attention_of_a_text_encoder_is_changed(loaded: Any, tmp_path: Path, level: str) -> None:
    layer = text_model(loaded("sd").text_encoder).encoder.layers[1].self_attn.q_proj
    before, name = layer.weight.detach().clone(), f"lora_te_{level}encoder_layers_1_self_attn_q_proj"
    path = write_network(tmp_path / "n.safetensors", {name: tuple(before.shape)})
    with merged(loaded("sd"), "sd", "--lora a", path):
        assert torch.allclose(layer.weight, equation(before, load_file(path), name), atol=1e-6)


FUSED = {
    "flux": (
        "lora_unet_single_blocks_1_linear1",
        [f"single_transformer_blocks.1.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
    ),
    "sd3": (
        "lora_unet_joint_blocks_0_context_block_attn_qkv",
        [f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"],
    ),
}


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("family", FUSED)
def test_a_fused_layer_changes_the_layers_that_diffusers_splits_it_into(
    loaded: Any, tmp_path: Path, family: str, kind: str
) -> None:
    transformer = loaded(family).transformer
    name, parts = FUSED[family]
    before = torch.cat([transformer.get_submodule(part).weight.detach().clone() for part in parts])
    path = write_network(tmp_path / "n.safetensors", {name: tuple(before.shape)}, kind)
    with merged(loaded(family), family, "--lora a", path, multiplier=1.0):
        after = torch.cat([transformer.get_submodule(part).weight.detach().clone() for part in parts])
    assert torch.allclose(after, equation(before, load_file(path), name), atol=1e-5)


def equation(weight: Tensor, file: Mapping[str, Tensor], name: str) -> Tensor:
    """W + alpha / rank * up down; with DoRA each row has the length that the file says (arXiv 2402.09353)."""
    up, down = file[f"{name}.lora_up.weight"], file[f"{name}.lora_down.weight"]
    whole = weight + float(file[f"{name}.alpha"]) / len(down) * up @ down
    if f"{name}.dora_scale" not in file:
        return whole
    return file[f"{name}.dora_scale"] * whole / whole.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_modulation_whose_halves_diffusers_swaps_is_changed_half_by_half(loaded: Any, tmp_path: Path, family: str) -> None:
    layer = loaded(family).transformer.norm_out.linear
    before, name = layer.weight.detach().clone(), "lora_unet_final_layer_adaLN_modulation_1"
    path = write_network(tmp_path / "n.safetensors", {name: tuple(before.shape)})
    with merged(loaded(family), family, "--lora a", path):
        difference = layer.weight.detach() - before
    file = load_file(path)
    shift, scale = (0.5 * file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"]).chunk(2)
    assert torch.allclose(difference, torch.cat([scale, shift]), atol=1e-6)


@pytest.mark.parametrize(
    ("family", "prefixes"), [("flux", ("lora_te1", "lora_te3")), ("sd3", ("lora_te1", "lora_te2", "lora_te3"))]
)
def test_text_encoders_have_the_prefixes_of_sd_scripts(
    loaded: Any, tmp_path: Path, family: str, prefixes: tuple[str, ...]
) -> None:
    """The last one is T5."""
    pipeline = loaded(family)
    clip = "text_model_encoder_layers_0_mlp_fc1"
    names = [f"{prefix}_{clip}" for prefix in prefixes[:-1]] + [f"{prefixes[-1]}_encoder_block_0_layer_0_SelfAttention_q"]
    encoders = [encoder for name in PARTS[2:] if (encoder := getattr(pipeline, name, None)) is not None]
    layers = [text_model(encoder).encoder.layers[0].mlp.fc1 for encoder in encoders[:-1]]
    layers.append(encoders[-1].encoder.block[0].layer[0].SelfAttention.q)
    path = write_network(
        tmp_path / "n.safetensors", {name: tuple(layer.weight.shape) for name, layer in zip(names, layers, strict=True)}
    )
    before = [layer.weight.detach().clone() for layer in layers]
    with merged(pipeline, family, "--lora a", path):
        assert not any(torch.equal(layer.weight, old) for layer, old in zip(layers, before, strict=True))


def test_the_multiplier_scales_the_change(loaded: Any, tiny_lora: Path) -> None:
    layer = loaded("sd").unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    before = layer.weight.detach().clone()
    changes = []
    for multiplier in (1.0, 0.25):
        with merged(loaded("sd"), "sd", "--lora a", tiny_lora, multiplier):
            changes.append(layer.weight.detach() - before)
    assert torch.allclose(0.25 * changes[0], changes[1], atol=1e-6)


def test_no_alpha_is_no_scaling(loaded: Any, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    layer = loaded("sd").unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    before = layer.weight.detach().clone()
    path = write_network(tmp_path / "n.safetensors", {name: tuple(before.shape)})
    file = load_file(path)
    del file[f"{name}.alpha"]
    save_file(file, tmp_path / "without.safetensors")
    with merged(loaded("sd"), "sd", "--lora a", tmp_path / "without.safetensors"):
        difference = layer.weight.detach() - before
    assert torch.allclose(difference, file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"], atol=1e-6)


REFUSED = {
    "a layer that the base lacks": ({"lora_unet_double_blocks_0_img_attn_qkv": (8, 8)}, "which this base does not have"),
    "another width": (
        {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (96, 24)},
        "does not fit this base",
    ),
    "another program's format": ({"unet.mid_block.attn.to_q": (8, 8)}, "no LoRA or LyCORIS file in sd-scripts' format"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_ends_in_one_sentence_and_changes_nothing(loaded: Any, tmp_path: Path, case: str) -> None:
    layers, sentence = REFUSED[case]
    path = write_network(tmp_path / "n.safetensors", layers)
    before = weights_of(loaded("sd"))
    with pytest.raises(ConfigError, match=f"^--lora a: .*{sentence}"), merged(loaded("sd"), "sd", "--lora a", path):
        pytest.fail("merged")
    assert changed(before, weights_of(loaded("sd"))) == set()


def test_a_kind_that_lycoris_does_not_know_is_named(loaded: Any, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.novelty": torch.ones(2)}, tmp_path / "n.safetensors")
    with (
        pytest.raises(ConfigError, match=r"of a kind that LyCORIS cannot merge \(novelty\)"),
        merged(loaded("sd"), "sd", "--lora a", tmp_path / "n.safetensors"),
    ):
        pytest.fail("merged")


def test_a_rotation_of_another_width_is_refused(loaded: Any, tmp_path: Path) -> None:
    """sd-scripts' own OFT; that it is what the host makes of it, test_host_forward.py shows."""
    name = "oft_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.oft_blocks": torch.zeros(4, 3, 3), f"{name}.alpha": torch.ones(())}, tmp_path / "n.safetensors")
    with (
        pytest.raises(ConfigError, match=r"^--lora a: .* does not fit this base \(it rotates 12 rows, the layer has"),
        merged(loaded("sd"), "sd", "--lora a", tmp_path / "n.safetensors"),
    ):
        pytest.fail("merged")
