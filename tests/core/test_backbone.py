"""Backbones: what is frozen, what transformers and timm load, how the table of loaders is used."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel

from adt_plugin.core.discriminator import Discriminator, FrozenBackbone, load_backbone
from adt_plugin.core.discriminator.backbone import split_scheme
from adt_plugin.core.discriminator.loaders import LOADERS, FeatureNetwork, processor_size
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.hub import download_command
from toys import ToyFeatures


def images(batch: int = 2, height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Frozen whatever the source


@pytest.mark.parametrize(
    "attempt", [lambda m: m.train(), lambda m: m.requires_grad_(True), lambda m: nn.Sequential(m).train().requires_grad_(True)]
)
def test_the_backbone_stays_frozen_whatever_is_called(attempt) -> None:  # noqa: ANN001
    network = nn.Sequential(ToyFeatures(), nn.Identity())
    backbone = FrozenBackbone(network, [8, 12])
    attempt(backbone)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert list(backbone.parameters()) == [] and backbone.state_dict() == {}


def test_the_backbone_follows_to_another_dtype_and_answers_in_float32() -> None:
    network = ToyFeatures()
    backbone = FrozenBackbone(network, [8, 12]).to(torch.bfloat16)
    assert network.first.weight.dtype == torch.bfloat16
    assert all(features.dtype == torch.float32 for features in backbone(images()))


def test_the_gradient_reaches_the_image_through_the_backbone() -> None:
    picture = images().requires_grad_(True)
    FrozenBackbone(ToyFeatures(), [8, 12])(picture)[1].sum().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0


# The table of loaders


class Source(nn.Module):
    """A network as a loader returns it."""

    def __init__(self, channels: Sequence[int] = (8, 12)) -> None:
        super().__init__()
        self.features, self.channels, self.patch_size, self.image_size = ToyFeatures(), list(channels), 2, 32

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.features(images)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("facebook/dinov2-base", ("transformers", "facebook/dinov2-base")),
        ("transformers:facebook/dinov2-base", ("transformers", "facebook/dinov2-base")),
        ("timm:vit_small_patch14_dinov2.lvd142m", ("timm", "vit_small_patch14_dinov2.lvd142m")),
        ("timm:C:\\models\\vit", ("timm", "C:\\models\\vit")),
        ("C:\\models\\dino", ("transformers", "C:\\models\\dino")),
        ("c:/models/dino", ("transformers", "c:/models/dino")),
        ("/models/timm:x", ("transformers", "/models/timm:x")),
        ("timm", ("transformers", "timm")),
        ("torchhub:dino", ("transformers", "torchhub:dino")),
    ],
)
def test_a_known_scheme_chooses_the_loader_and_all_else_is_for_transformers(value: str, expected: tuple[str, str]) -> None:
    assert split_scheme(value) == expected


def test_a_scheme_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="--adt_backbone timm: names no model: write timm:name"):
        load_backbone("timm:")


def test_no_scheme_is_one_letter_long() -> None:
    assert min(len(scheme) for scheme in LOADERS) > 1  # a drive of Windows


def test_an_entry_in_the_table_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(name: str, blocks: Sequence[int] | None, dtype: torch.dtype) -> FeatureNetwork:
        calls.append((name, blocks, dtype))
        return Source()

    monkeypatch.setitem(LOADERS, "mine", load)
    backbone = load_backbone("mine:a:b", [2, 3], torch.bfloat16)
    assert calls == [("a:b", [2, 3], torch.bfloat16)]
    assert (backbone.channels, backbone.patch_size, backbone.image_size) == ([8, 12], 2, 32)
    assert not any(parameter.requires_grad for parameter in backbone._network.parameters())
    assert Discriminator(backbone, width=16).pair_features(images(), images(seed=1)).gen[0].shape[1] == 8


def test_a_loader_must_return_a_torch_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOADERS, "mine", lambda name, blocks, dtype: SimpleNamespace(channels=[8]))
    with pytest.raises(TypeError, match="the loader 'mine' returned a SimpleNamespace, not a torch module"):
        load_backbone("mine:x")


def test_the_scheme_of_transformers_may_be_written(tiny_dino: Path) -> None:
    picture = images(height=56, width=56)
    written, left_out = load_backbone(f"transformers:{tiny_dino}", [4]), load_backbone(str(tiny_dino), [4])
    assert torch.equal(written(picture)[0], left_out(picture)[0])


# Transformers


@pytest.mark.parametrize("fixture", ["tiny_dino", "tiny_dino_registers"])
@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 84), (70, 42)])
def test_dinov2_tokens_lie_on_their_grid(request: pytest.FixtureRequest, fixture: str, height: int, width: int) -> None:
    """Also with register tokens and at sizes other than the pre-trained one."""
    backbone = load_backbone(str(request.getfixturevalue(fixture)), [2, 4])
    assert (backbone.patch_size, backbone.channels) == (14, [32, 32])
    assert [tuple(f.shape) for f in backbone(images(height=height, width=width))] == [(2, 32, height // 14, width // 14)] * 2


@pytest.mark.parametrize("fixture", ["tiny_dino", "tiny_dino_registers"])
def test_a_patch_moves_its_own_token_most(request: pytest.FixtureRequest, fixture: str) -> None:
    """Layout: painting one patch changes the feature at that grid position most (row-major, special tokens dropped)."""
    backbone = load_backbone(str(request.getfixturevalue(fixture)), [1])
    plain, painted = images(1, 56, 56), images(1, 56, 56)
    painted[:, :, 14:28, 42:56] = 3.0
    change = (backbone(painted)[0] - backbone(plain)[0]).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 4) == (1, 3)


def test_images_are_normalised_as_the_backbones_processor_says(tiny_dino: Path) -> None:
    network = load_backbone(str(tiny_dino))._network
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    seen = []
    network.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    network((mean * 2 - 1).expand(1, 3, 56, 56))
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 56, 56), atol=1e-6, rtol=0)


def test_the_size_of_the_images_is_the_processors_own(tiny_dino: Path) -> None:
    assert load_backbone(str(tiny_dino)).image_size == 56
    crop = SimpleNamespace(do_center_crop=True, crop_size={"height": 224, "width": 224}, size={"shortest_edge": 256})
    assert processor_size(crop) == 224
    assert processor_size(SimpleNamespace(do_center_crop=False, crop_size=None, size={"shortest_edge": 256})) == 256
    assert processor_size(SimpleNamespace(size=None)) is None


def test_four_blocks_are_chosen_evenly_by_default(tiny_dino: Path) -> None:
    assert load_backbone(str(tiny_dino))._network.blocks == [1, 2, 3, 4]


def write_vision_model(folder: Path, model: nn.Module) -> str:
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def test_another_vision_transformer_serves_too(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    backbone = load_backbone(write_vision_model(tmp_path, ViTModel(config)))
    assert [tuple(f.shape) for f in backbone(images(height=32, width=48))] == [(2, 32, 4, 6)] * len(backbone.channels)


def test_a_network_without_a_token_grid_is_refused(tmp_path: Path) -> None:
    swin = SwinModel(SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4))
    with pytest.raises(ConfigError, match="--adt_backbone .* SwinModel, not a vision transformer"):
        load_backbone(write_vision_model(tmp_path, swin))


def test_a_missing_block_is_refused(tiny_dino: Path) -> None:
    with pytest.raises(ConfigError, match="--adt_blocks asks for block 5, but .* has 4"):
        load_backbone(str(tiny_dino), [1, 5])


def refusal(name: str) -> str:
    """The sentence with which a value is refused; none prints an address of the hub."""
    with pytest.raises(ConfigError) as caught:
        load_backbone(name)
    message = str(caught.value)
    assert message.startswith(f"--adt_backbone {name} could not be loaded") and "\n" not in message and "http" not in message
    return message


def test_a_name_on_the_hub_comes_with_the_command_that_downloads_it() -> None:
    assert f"`{download_command('nobody/nothing')}` once, or give a local folder" in refusal("nobody/nothing")


@pytest.mark.parametrize("name", ["/no/such/folder", "./dino", "~/dino", "models/dino/base", r"C:\models\dino"])
def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(name: str) -> None:
    assert refusal(name).endswith(": there is no such folder.")


def test_a_folder_without_a_model_names_the_files_that_it_lacks(tiny_dino: Path, tmp_path: Path) -> None:
    assert "check the folder (it has no config.json and no model.safetensors)" in refusal(str(tmp_path))
    (tmp_path / "config.json").write_text((tiny_dino / "config.json").read_text())
    assert "check the folder (it has no model.safetensors)" in refusal(str(tmp_path))


def test_pickled_weights_are_refused(tiny_dino: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((tiny_dino / name).read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_backbone(str(tmp_path))


def test_an_adapter_is_refused_before_its_base_is_looked_up(
    tiny_dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With peft installed, transformers would load the base that the adapter names, and its pickled weights."""
    folder = Path(shutil.copytree(tiny_dino, tmp_path / "adapter"))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    torch.save({}, folder / "adapter_model.bin")

    def looked_at(*args: object, **kwargs: object) -> None:
        raise AssertionError("transformers has seen it")

    monkeypatch.setattr("transformers.AutoImageProcessor.from_pretrained", looked_at)
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", looked_at)
    with pytest.raises(
        ConfigError, match=r"^--adt_backbone \S+ is an adapter \(it has an adapter_config.json\).*merge it"
    ) as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)


# timm

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
TINY_VIT = {"img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    return pytest.importorskip("timm")


def write_timm_model(timm: ModuleType, folder: Path, architecture: str = "vit_tiny_patch16_224", **arguments: object) -> Path:
    """A random model as timm publishes one: `config.json` and `model.safetensors`."""
    torch.manual_seed(0)
    save_file(timm.create_model(architecture, **arguments).state_dict(), folder / "model.safetensors")
    size = [3, arguments.get("img_size", 32), arguments.get("img_size", 32)]
    data = {"mean": MEAN, "std": STD, "input_size": size, "fixed_input_size": True, "num_classes": 1000}
    config = {"architecture": architecture, "pretrained_cfg": data, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tiny_vit(timm: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random timm ViT: 4 blocks of width 32, patch 14, 56x56 pixels, a head of 1000 classes."""
    return write_timm_model(timm, tmp_path_factory.mktemp("tiny_vit"), **TINY_VIT)


def timms_own_features(timm: ModuleType, folder: Path, blocks: list[int], picture: torch.Tensor) -> list[torch.Tensor]:
    """Feature maps by the model that timm itself loads from the folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, dynamic_img_size=True).eval()
    pixels = ((picture + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return model.forward_intermediates(pixels, indices=[block - 1 for block in blocks], intermediates_only=True)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 84)])
@pytest.mark.parametrize("blocks", [[2, 4], [1, 2]])
def test_features_are_those_of_timm_itself(
    timm: ModuleType, tiny_vit: Path, blocks: list[int], height: int, width: int
) -> None:
    backbone, picture = load_backbone(f"timm:{tiny_vit}", blocks), images(height=height, width=width)
    assert (backbone.patch_size, backbone.image_size, backbone.channels) == (14, 56, [32, 32])
    features = backbone(picture)
    assert [tuple(f.shape) for f in features] == [(2, 32, height // 14, width // 14)] * 2
    torch.testing.assert_close(features, timms_own_features(timm, tiny_vit, blocks, picture), rtol=1e-5, atol=1e-5)


def test_features_come_in_the_order_in_which_blocks_are_chosen(timm: ModuleType, tiny_vit: Path) -> None:
    picture = images(height=56, width=56)
    first, third = load_backbone(f"timm:{tiny_vit}", [1, 3])(picture)
    torch.testing.assert_close(load_backbone(f"timm:{tiny_vit}", [3, 1, 3])(picture), [third, first, third])
    assert not torch.allclose(first, third)


def test_four_blocks_of_a_timm_model_by_default(tiny_vit: Path) -> None:
    assert load_backbone(f"timm:{tiny_vit}")._network.blocks == [1, 2, 3, 4]


def test_only_what_is_read_is_kept(tiny_vit: Path) -> None:
    names = [name for name, _ in load_backbone(f"timm:{tiny_vit}", [1, 2])._network.named_parameters()]
    assert {name.split(".")[2] for name in names if "blocks." in name} == {"0", "1"}
    assert not any(name.startswith(("model.norm.", "model.head.")) for name in names)


@pytest.mark.parametrize(
    "attempt", [lambda m: m.train(), lambda m: m.requires_grad_(True), lambda m: nn.Sequential(m).train().requires_grad_(True)]
)
def test_the_gradient_of_a_timm_model_reaches_images_and_no_weights(tiny_vit: Path, attempt) -> None:  # noqa: ANN001
    backbone, picture = load_backbone(f"timm:{tiny_vit}"), images(height=56, width=56).requires_grad_(True)
    attempt(backbone)
    backbone(picture)[-1].square().sum().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in backbone._network.parameters())
    assert not any(module.training for module in backbone._network.modules())


def test_a_timm_model_serves_the_discriminator_in_bf16(tiny_vit: Path) -> None:
    discriminator = Discriminator(load_backbone(f"timm:{tiny_vit}"), width=16, image_size=56).to(torch.float32)
    discriminator.backbone.to(torch.bfloat16)
    observed = discriminator.pair_features(images(height=64, width=96), images(height=64, width=96, seed=1))
    assert all(features.dtype == torch.float32 for features in observed.gen)
    assert torch.isfinite(discriminator.score_gen(observed)).all()


def test_loading_a_timm_model_draws_nothing_from_the_global_generator(tiny_vit: Path) -> None:
    state = torch.get_rng_state()
    load_backbone(f"timm:{tiny_vit}")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_block_of_a_timm_model_is_refused(tiny_vit: Path) -> None:
    with pytest.raises(ConfigError, match="--adt_blocks asks for block 5, but timm:.* has 4: choose from 1 to 4"):
        load_backbone(f"timm:{tiny_vit}", [1, 5])


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("resnet10t", {}),  # takes no `dynamic_img_size`
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 1]}),
        ("vit_tiny_patch16_224", {"img_size": 56, "patch_size": [14, 28], "embed_dim": 32, "depth": 1, "num_heads": 2}),
        ("vit_tiny_r_s16_p8_224", {"img_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2}),  # patches of a ResNet's map
    ],
)
def test_a_timm_model_without_a_grid_of_square_patches_is_refused(
    timm: ModuleType, tmp_path: Path, architecture: str, arguments: dict[str, object]
) -> None:
    folder = write_timm_model(timm, tmp_path, architecture, **arguments)
    with pytest.raises(
        ConfigError, match="--adt_backbone timm:.* is a .*, not a vision transformer with square patches"
    ) as caught:
        load_backbone(f"timm:{folder}")
    assert "\n" not in str(caught.value)


def test_a_name_that_timm_does_not_know_is_refused_with_the_nearest(timm: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"did you mean timm:vit_small_patch14_dinov2\.lvd142m\?"):
        load_backbone("timm:vit_smal_patch14_dinov2.lvd142m")


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "nobody/nothing", "/no/such/folder"])
def test_a_timm_model_that_is_not_there_is_refused_in_one_line(
    timm: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = name if "/" in name else f"timm/{name}"
    expected = "there is no such folder" if name.startswith("/") else f"{download_command(repository)}`"
    assert expected in refusal(f"timm:{name}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.npz"])
def test_weights_of_a_timm_model_are_never_unpickled(timm: ModuleType, tiny_vit: Path, tmp_path: Path, name: str) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(tmp_path / "trace"), "w"))

    shutil.copy(tiny_vit / "config.json", tmp_path)
    torch.save({"weight": Evil()}, tmp_path / name)
    with pytest.raises(ConfigError, match=r"has no model.safetensors, and pickled weights are never loaded"):
        load_backbone(f"timm:{tmp_path}")
    shutil.copy(tmp_path / name, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="could not be loaded, check the folder"):
        load_backbone(f"timm:{tmp_path}")
    assert not (tmp_path / "trace").exists()


def test_safetensors_are_read_although_a_configuration_asks_for_another_format(
    timm: ModuleType, tiny_vit: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_vit, tmp_path, dirs_exist_ok=True)
    torch.save({}, tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {
        "custom_load": True,
        "file": str(tmp_path / "pytorch_model.bin"),
        "url": "https://no.such/x.pth",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    picture = images(height=56, width=56)
    torch.testing.assert_close(load_backbone(f"timm:{tmp_path}")(picture), load_backbone(f"timm:{tiny_vit}")(picture))


def test_weights_of_another_model_are_refused(timm: ModuleType, tiny_vit: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_vit, tmp_path, dirs_exist_ok=True)
    save_file({"cls_token": torch.zeros(1, 1, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="could not be loaded, check the folder"):
        load_backbone(f"timm:{tmp_path}")


def test_without_timm_its_installation_is_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"--adt_backbone timm:vit needs timm, .*: pip install timm\."):
        load_backbone("timm:vit")
