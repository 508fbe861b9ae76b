"""What single files and folders become: sizes, names and weights, against diffusers' own conversion where it has one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from adt_plugin.compare import configs, families, layouts, models, sizes
from adt_plugin.compare.families import identify, native_size
from adt_plugin.compare.models import Parts, load_pipeline
from adt_plugin.compare.rendering import first_noise, sample
from adt_plugin.compare.settings import Prompt, Sampling, Settings, Shot
from adt_plugin.core.errors import ConfigError
from tinyhost.autoencoders import ldm_autoencoder
from tinyhost.models import HostModel, TinyModel
from tinyhost.text_encoders import own_tensors
from tinyhost.true.sdxl import unet as sdxl_unet
from tinyhost.weights import conv, random_weights, save, tensor_shapes

FAMILIES = ("sd", "sdxl", "sd3", "flux")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_from_its_file_or_folder(tiny_model: TinyModel, family: str) -> None:
    assert identify("--base", tiny_model(family).checkpoint).family.name == family


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_makes_an_image_that_the_seed_alone_decides(loaded: Any, small: Settings, family: str) -> None:
    """Not its neighbours in the batch; and other seeds make other images."""
    pipeline, kind = loaded(family), families.FAMILIES[family]
    shots = [Shot(Prompt("a red square"), seed, Sampling(1, 2.0)) for seed in (1, 2)]
    together = sample(pipeline, kind, shots, shots[0].sampling, small)
    alone = sample(pipeline, kind, shots[1:], shots[0].sampling, small)
    assert [image.size for image in together] == [(64, 64)] * 2
    assert largest_difference(together[1], alone[0]) <= 2 < largest_difference(together[0], together[1])


def largest_difference(a: Any, b: Any) -> int:
    from PIL import ImageChops

    return max(high for _, high in ImageChops.difference(a, b).getextrema())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_noise_is_drawn_on_the_cpu_in_float32_seed_by_seed(loaded: Any, family: str) -> None:
    noise = first_noise(loaded(family), families.FAMILIES[family], [3, 5], (128, 64))
    channels = 16 if family in ("sd3", "flux") else 4
    drawn = torch.randn(channels, 8, 16, generator=torch.Generator().manual_seed(5))
    shown = loaded(family)._unpack_latents(noise, 64, 128, 8) if family == "flux" else noise
    assert shown.shape == (2, channels, 8, 16)
    assert torch.equal(shown[1], drawn)


# Names: each against diffusers' own conversion of checkpoints


def test_the_names_of_sd3_are_those_of_diffusers_conversion(tiny_model: TinyModel) -> None:
    tensors = models.without_prefix(
        {key: value for key, value in load_file(tiny_model("sd3").checkpoint).items() if "first_stage" not in key}
    )
    ours = models.load_denoiser(SD3Transformer2DModel, sizes.sd3_config, layouts.SD3, tensors, torch.float32).state_dict()
    theirs = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_names_of_sd3_cover_the_norms_and_second_attentions_of_sd35() -> None:
    config = {"num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 1, "dual_attention_layers": (0,)}
    model = SD3Transformer2DModel(**config, caption_projection_dim=64, qk_norm="rms_norm", pos_embed_max_size=4)
    original = originals(model, layouts.SD3)
    original["pos_embed"] = model.state_dict()["pos_embed.pos_embed"]
    theirs = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
    assert {name: value.tolist() for name, value in theirs.items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }


def originals(model: Any, layout: layouts.Layout) -> dict[str, Tensor]:
    """A model's weights under the original names."""
    found = {}
    names = frozenset(name for name, _ in model.named_modules())
    for original, row in layouts.expanded(layout, names):
        place = models.place_of(model, row)
        for part in ("weight", "bias"):
            if getattr(place.layers[0], part, None) is not None:
                is_scale = "_norm" in original and "double" in original or "norm." in original and "single" in original
                found[f"{original}.{'scale' if is_scale else part}"] = place.read(part)
    return found


def test_the_names_of_flux_are_those_of_diffusers_conversion() -> None:
    """At FLUX's width, which diffusers' conversion takes for granted; with one column, since only rows matter."""
    width = 3072
    rows = {row: count for row, count in flux_rows(width).items()}
    tensors = {
        f"{name}.{part}": torch.arange(count, dtype=torch.float32).reshape(-1, *([1] if part == "weight" else []))
        for name, count in rows.items()
        for part in (("scale",) if "_norm" in name else ("weight", "bias"))
    }
    theirs = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    ours = {}
    for original, places in layouts.FLUX.items():
        original, places = original.replace("#", "0"), [place.replace("#", "0") for place in places]
        for part in ("weight", "bias", "scale"):
            if (tensor := tensors.get(f"{original}.{part}")) is None:
                continue
            if places == ["norm_out.linear"]:
                tensor = torch.cat(tensor.chunk(2)[::-1])
            pieces = tensor.split([width] * 3 + [4 * width]) if len(places) == 4 else tensor.chunk(len(places))
            ours |= {f"{place}.{part.replace('scale', 'weight')}": piece for place, piece in zip(places, pieces, strict=True)}
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def flux_rows(width: int) -> dict[str, int]:
    """Rows of the layers of a FLUX.1 [dev] with one block of each kind."""
    fused = {
        "qkv": 3,
        "img_mod.lin": 6,
        "txt_mod.lin": 6,
        "mlp.0": 4,
        "modulation.lin": 3,
        "linear1": 7,
        "adaLN_modulation.1": 2,
    }
    found = {}
    for name in layouts.FLUX:
        factor = next((factor for ending, factor in fused.items() if name.endswith(ending)), 1)
        found[name.replace("#", "0")] = 128 if "_norm" in name else 64 if name == "final_layer.linear" else factor * width
    return found


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_names_of_unets_are_those_of_diffusers_conversion(loaded: Any, family: str) -> None:
    unet = loaded(family).unet
    checkpoint = {f"model.diffusion_model.{name}": tensor for name, tensor in ldm_state(unet).items()}
    theirs = single_file_utils.convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    assert set(theirs) == set(unet.state_dict())
    assert all(torch.equal(theirs[name], tensor) for name, tensor in unet.state_dict().items())


def ldm_state(unet: Any) -> dict[str, Tensor]:
    """A UNet's weights under latent diffusion's names."""
    attentive = [hasattr(block, "attentions") for block in unet.up_blocks]
    found = {}
    for key, tensor in unet.state_dict().items():
        layer, _, part = key.rpartition(".")
        found[f"{layouts.ldm_name(layer, unet.config.layers_per_block, attentive)}.{part}"] = tensor
    return found


# Sizes


def on_meta(kind: Any, config: Any) -> Any:
    with torch.device("meta"):
        return kind(config) if isinstance(config, CLIPTextConfig) else kind.from_config(config)


@pytest.mark.parametrize(
    ("config", "parameters"), [(configs.UNET1, 859_520_964), (configs.UNET2, 865_910_724), (configs.UNET_XL, 2_567_463_684)]
)
def test_the_unets_have_as_many_parameters_as_the_published_ones(config: Any, parameters: int) -> None:
    assert sum(part.numel() for part in on_meta(UNet2DConditionModel, config).parameters()) == parameters


def test_sdxls_unet_has_the_shapes_of_the_published_checkpoint() -> None:
    unet = on_meta(UNet2DConditionModel, configs.UNET_XL)
    shapes = dict(tensor_shapes(sdxl_unet()))
    assert {name: tuple(tensor.shape) for name, tensor in ldm_state(unet).items()} == shapes


@pytest.mark.parametrize(
    ("kind", "config", "parameters"),
    [
        (CLIPTextModel, configs.CLIP_L, 123_060_480),
        (CLIPTextModel, configs.CLIP_H, 340_387_840),
        (CLIPTextModelWithProjection, configs.CLIP_G, 694_659_840),
    ],
)
def test_the_text_encoders_have_as_many_parameters_as_the_published_ones(kind: Any, config: Any, parameters: int) -> None:
    assert sum(part.numel() for part in on_meta(kind, CLIPTextConfig(**config)).parameters()) == parameters


def test_the_vae_has_as_many_parameters_as_the_published_one() -> None:
    assert sum(part.numel() for part in on_meta(AutoencoderKL, configs.VAE).parameters()) == 83_653_863


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_sizes_of_companions_are_read_from_their_files(loaded: Any, tiny_model: TinyModel, family: str) -> None:
    from importlib import import_module

    kit: ModuleType = import_module(f"tinyhost.families.{family}")
    pipeline = loaded(family)
    t5 = pipeline.text_encoder_2 if family == "flux" else pipeline.text_encoder_3
    assert (t5.config.d_model, t5.config.num_heads, t5.config.d_kv, t5.config.d_ff) == (kit.T5["d_model"], 2, 16, 32)
    assert pipeline.text_encoder.config.num_hidden_layers == kit.CLIP_L["num_hidden_layers"]
    assert pipeline.vae.config.latent_channels == 16
    assert pipeline.vae.config.block_out_channels == [kit.VAE_CHANNELS] * 4
    assert native_size(identify("--base", tiny_model(family).checkpoint)) == 1024


# Single files of Stable Diffusion


@pytest.fixture(scope="module")
def sd_file(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SD as one file under latent diffusion's names, with another VAE."""
    pipeline = loaded("sd")
    vae = {**ldm_autoencoder((32,) * 4, blocks=1, latent_channels=4)}
    vae |= {"quant_conv": conv(8, 8, 1, 1), "post_quant_conv": conv(4, 4, 1, 1)}
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in ldm_state(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in random_weights(vae).items()}
    encoder = own_tensors(pipeline.text_encoder)
    tensors |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in encoder.items()}
    return save(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path_factory.mktemp("file") / "sd.safetensors"
    )


def test_a_single_file_is_loaded_without_a_network(loaded: Any, sd_file: Path, tiny_sd: HostModel) -> None:
    model = identify("--base", sd_file)
    assert (model.family.name, model.second, native_size(model)) == ("sd", False, 512)
    pipeline = load_pipeline("--base", model, Parts(config=tiny_sd.checkpoint), torch.float32)
    for part in ("unet", "text_encoder"):
        theirs, ours = getattr(loaded("sd"), part).state_dict(), getattr(pipeline, part).state_dict()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    tensors = load_file(sd_file)
    assert torch.equal(pipeline.vae.decoder.conv_in.weight, tensors["first_stage_model.decoder.conv_in.weight"])


def test_a_single_file_of_unusual_sizes_asks_for_a_description(sd_file: Path, tiny_sd: HostModel) -> None:
    with pytest.raises(ConfigError, match="^--base: .* could not be loaded .* by --model_config"):
        load_pipeline("--base", identify("--base", sd_file), Parts(tokenizers=tiny_sd.tokenizers), torch.float32)


def test_another_vae_replaces_the_models_own(sd_file: Path, tiny_sd: HostModel) -> None:
    model = identify("--base", tiny_sd.checkpoint)
    pipeline = load_pipeline("--base", model, Parts(vae=sd_file), torch.float32)
    assert pipeline.vae.config.scaling_factor == pytest.approx(0.18215)
    assert torch.equal(pipeline.vae.decoder.conv_in.weight, load_file(sd_file)["first_stage_model.decoder.conv_in.weight"])


# What is missing or strange


def test_a_missing_tokenizer_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="openai/clip-vit-large-patch14 is not in the cache .* --tokenizer_cache_dir"):
        models.tokenizer(models.CLIP_L, Parts(tokenizers=tmp_path))


@pytest.mark.parametrize(("family", "flag"), [("flux", "--ae"), ("sd3", "--clip_l")])
def test_missing_companions_are_named_by_their_flag(tiny_model: TinyModel, family: str, flag: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ConfigError, match=flag):
        load_pipeline("--base", identify("--base", model.checkpoint), Parts(tokenizers=model.tokenizers), torch.float32)


def test_a_denoiser_with_a_layer_too_many_or_too_few_is_refused(tiny_model: TinyModel) -> None:
    from diffusers import FluxTransformer2DModel

    tensors = load_file(tiny_model("flux").checkpoint)
    for wrong in (tensors | {"surprise.weight": torch.ones(1)}, {k: v for k, v in tensors.items() if k != "txt_in.bias"}):
        with pytest.raises(ConfigError, match="does not fit FluxTransformer2DModel"):
            models.load_denoiser(FluxTransformer2DModel, sizes.flux_config, layouts.FLUX, wrong, torch.float32)


def test_files_that_cannot_be_compared_are_refused_by_their_flag(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    other = save({"blocks.0.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    chroma = save(
        {"distilled_guidance_layer.x": torch.ones(1), "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(1)},
        tmp_path / "chroma.safetensors",
    )
    network = save({"lora_unet_x.alpha": torch.ones(1)}, tmp_path / "network.safetensors")
    sentences = {
        network: "is a network, not a whole model: give it by --lora",
        tmp_path / "old.ckpt": "pickled and could run code",
        tmp_path / "broken.safetensors": "cannot be read as safetensors",
        tmp_path / "folder": "no diffusers folder",
        tmp_path / "nowhere": "there is no",
        other: "of no family that can be compared",
        chroma: "of no family that can be compared",
    }
    for path, sentence in sentences.items():
        with pytest.raises(ConfigError, match=f"^--base: .*{sentence}"):
            identify("--base", path)
