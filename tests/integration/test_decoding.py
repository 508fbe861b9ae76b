"""The tiny decoder, and that both decoders leave what they were made from alone."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from adtruns import assert_trained_with_adt
from diffusers import AutoencoderTiny
from torch import nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.hub import download_command
from adt_plugin.core.images.decoding import LatentDecoder, LatentFormat, load_tiny_decoder, pixels_of, resolve_dtype
from adt_plugin.host.families import FAMILIES, SD, SDXL
from adt_plugin.host.run import Models
from tinyhost.models import HostModel, seeded
from tinyhost.run import TinyRun


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random, narrow tiny autoencoder for four latent channels."""
    folder = tmp_path_factory.mktemp("tiny_decoder")
    with seeded(0):
        AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(folder)
    return folder


def test_it_decodes_as_its_autoencoder_does_with_gradient(tiny_decoder: Path) -> None:
    decoder, whole = load_tiny_decoder(str(tiny_decoder), 4), AutoencoderTiny.from_pretrained(tiny_decoder)
    latents = torch.randn(2, 4, 6, 5, requires_grad=True)
    images = decoder(latents)
    assert images.shape == (2, 3, 48, 40) and decoder.latent_format.pixels == pixels_of(whole) == 8
    torch.testing.assert_close(images, whole.decode(latents).sample)
    gradient = torch.autograd.grad(images.square().sum(), latents, retain_graph=True)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(whole.decode(latents).sample.square().sum(), latents)[0])
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_in_bf16_it_still_gives_float32_images(tiny_decoder: Path) -> None:
    decoder = load_tiny_decoder(str(tiny_decoder), 4).to(torch.bfloat16)
    assert decoder(torch.randn(1, 4, 2, 2)).dtype == torch.float32


def test_wrong_folders_are_refused_in_one_sentence(tiny_decoder: Path, tiny_sd: HostModel, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((tiny_decoder / "config.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for folder, channels, said in (
            (tmp_path / "none", 4, "is no folder"),
            (broken, 4, "could not be loaded, check the folder"),
            (tiny_sd.checkpoint / "vae", 4, "is no tiny autoencoder"),
            (tiny_decoder, 16, "is for latents of 4 channels, this model's have 16"),
        ):
            with pytest.raises(ConfigError, match=said) as refused:
                load_tiny_decoder(str(folder), channels)
            assert "\n" not in str(refused.value) and str(refused.value).startswith("--adt_decoder")


def test_another_models_folder_is_refused_in_one_sentence_alone(
    tiny_sd: HostModel, tiny_dino: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the hundreds of names of weights that do not belong there."""
    for folder in (tiny_sd.checkpoint / "unet", tiny_dino):
        with pytest.raises(ConfigError, match=r"is no tiny autoencoder \(diffusers AutoencoderTiny\): use vae or taesd\.$"):
            load_tiny_decoder(str(folder), 4)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def hub_cache(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds a tiny decoder under the name of SD's."""
    folder = tmp_path / "models--madebyollin--taesd"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_decoder, folder / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.models.modeling_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    return tmp_path


def test_by_its_name_it_is_the_hubs(hub_cache: Path, tiny_decoder: Path) -> None:
    named, folder = load_tiny_decoder("taesd", 4, SD.tiny_decoder), load_tiny_decoder(str(tiny_decoder), 4)
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), folder.parameters(), strict=True))


def test_without_a_network_it_says_how_to_download_it(hub_cache: Path) -> None:
    with pytest.raises(ConfigError, match=f"run `{download_command('madebyollin/taesdxl')}`") as refused:
        load_tiny_decoder("taesd", 4, SDXL.tiny_decoder)
    assert "\n" not in str(refused.value)


def test_what_taesd_stands_for() -> None:
    """The repositories of github.com/madebyollin/taesd whose weights are diffusers' AutoencoderTiny."""
    assert {family.name: family.tiny_decoder for family in FAMILIES} == {
        "Stable Diffusion 1.x/2.x": "madebyollin/taesd",
        "Stable Diffusion XL": "madebyollin/taesdxl",
        "Stable Diffusion 3": "madebyollin/taesd3",
        "FLUX.1 and Chroma": "madebyollin/taef1",
        "Lumina Image 2.0": "madebyollin/taef1",
        "Anima": None,
        "HunyuanImage-2.1": None,
    }
    with pytest.raises(ConfigError, match="--adt_decoder taesd has no tiny decoder for this model family: use vae"):
        load_tiny_decoder("taesd", 16, None)


def test_a_run_gets_the_one_of_its_family(tiny_dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("adt_plugin.host.run.load_tiny_decoder", lambda *given: asked.append(given))
    Models.load(ADTConfig(backbone=str(tiny_dino), decoder="taesd"), SDXL)
    assert asked == [("taesd", 4, "madebyollin/taesdxl")]


def test_a_run_trains_with_it(run_tiny: TinyRun, adt_options: tuple[str | Path, ...], tiny_decoder: Path) -> None:
    run = run_tiny("--max_train_steps", "2", *adt_options, "--adt_decoder", tiny_decoder)
    assert_trained_with_adt(run, turns=2)
    assert run.metadata()["ss_adt_decoder"] == tiny_decoder.name


# The copy of the run's own decoder


class TinyVae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.post_quant_conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 4, 1)


def test_the_private_decoder_leaves_the_hosts_vae_alone() -> None:
    vae = TinyVae().half()
    private = LatentDecoder.copied_from(vae, LatentFormat(scale=0.5, shift=1.0)).to(torch.float32)
    assert vae.decoder.weight.dtype == torch.float16 and vae.decoder.weight.requires_grad
    assert not any(p.requires_grad for p in private.parameters())
    latents = torch.randn(1, 4, 2, 2)
    expected = private.decoder(private.post_quant_conv(latents / 0.5 + 1.0))
    torch.testing.assert_close(private(latents), expected)


@pytest.mark.parametrize(("name", "expected"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_decoders_precision_on_a_cpu(name: str, expected: torch.dtype) -> None:
    assert resolve_dtype(name, torch.device("cpu")) == expected


class BlockedVae(TinyVae):
    """With blocks, as diffusers' decoders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Tanh(), nn.Conv2d(8, 3, 1))
        object.__setattr__(self.decoder, "up_blocks", [self.decoder[0], self.decoder[1]])  # seen, but run once


def test_several_large_images_are_decoded_again_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    private = LatentDecoder.copied_from(BlockedVae(), LatentFormat(1.0, pixels=1))
    latents = torch.randn(3, 4, 2, 2, requires_grad=True)

    def decoded() -> tuple[torch.Tensor, torch.Tensor, int]:
        calls = []
        hook = private.decoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        images = private(latents)
        gradient = torch.autograd.grad(images.square().sum(), latents)[0]
        hook.remove()
        return images.detach(), gradient, len(calls)

    images, gradient, calls = decoded()
    monkeypatch.setattr("adt_plugin.core.images.decoding.LARGE", 4)
    again, same_gradient, more_calls = decoded()
    assert torch.equal(images, again) and torch.equal(gradient, same_gradient)
    assert (calls, more_calls) == (3, 6)
    latents = torch.randn(1, 4, 2, 2, requires_grad=True)
    assert decoded()[2] == 1  # there is nothing to save with one image


def test_checkpointed_blocks_give_the_same_images_and_gradients() -> None:
    vae = BlockedVae()
    private = LatentDecoder.copied_from(vae, LatentFormat(1.0))
    assert private.decoder[0].forward.__name__ == private.decoder[1].forward.__name__ == "checkpointed"
    assert vae.decoder[0].forward.__name__ == "forward"
    latents = torch.randn(1, 4, 2, 2, requires_grad=True)
    images = private(latents)
    gradient = torch.autograd.grad(images.square().sum(), latents)[0]
    plain = vae.decoder(vae.post_quant_conv(latents))
    torch.testing.assert_close(images, plain)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.square().sum(), latents)[0])
