"""Modules that only a part of a turn needs, away from the device the rest of the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core.discriminator import FrozenBackbone
from adt_plugin.core.images.offload import Offload
from toys import ToyDenoiser, diffusion_backward, toy_decode, toy_latents, toy_turn

META = torch.device("meta")


def device_of(module: nn.Module) -> str:
    return next(module.parameters()).device.type


def test_a_module_is_there_inside_and_its_own_weights_are_back_afterwards() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in module.state_dict().items()}
    with Offload([module], enabled=True).resident(META):
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor.data_ptr() == before[name][1]


def test_an_error_inside_brings_the_weights_back_too() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(KeyError), Offload([module], enabled=True).resident(META):
        raise KeyError
    assert device_of(module) == "cpu"


def test_without_the_option_nothing_moves() -> None:
    module = nn.Linear(2, 2)
    with Offload([module], enabled=False).resident(META):
        assert device_of(module) == "cpu"


def test_a_frozen_backbone_travels_although_it_is_no_submodule() -> None:
    backbone = FrozenBackbone(nn.Linear(2, 2), [2])
    with Offload([backbone], enabled=True).resident(META):
        assert device_of(backbone._network) == "meta"
    assert device_of(backbone._network) == "cpu"


def test_a_turn_offloads_its_decoder_and_its_backbone() -> None:
    turn = toy_turn(offload=True)
    assert turn.offload.modules == [turn.discriminator.backbone]  # the toys' decoder is a function
    assert toy_turn(offload=False).offload.modules == []


class Residence:
    """Stands for the offload, and says whether a turn is inside the block."""

    def __init__(self) -> None:
        self.inside = False

    def resident(self, device: torch.device) -> Residence:
        return self

    def __enter__(self) -> None:
        self.inside = True

    def __exit__(self, *error: object) -> None:
        self.inside = False


def test_decoder_and_backbone_are_there_for_the_decode_and_for_its_gradient_and_for_nothing_else() -> None:
    turn, net, latents = toy_turn(), ToyDenoiser(), toy_latents()
    turn.offload, seen = Residence(), []

    def noted(name: str, of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Tensor) -> Tensor:
            seen.append((name, turn.offload.inside))
            result = of(*args)
            if result.requires_grad and name == "decode":
                result.register_hook(lambda gradient: seen.append(("gradient", turn.offload.inside)))
            return result

        return call

    turn.decode = noted("decode", toy_decode)
    diffusion_backward(turn, net, latents)
    turn(noted("denoiser", net), latents)
    assert set(seen) == {("denoiser", False), ("decode", True), ("gradient", True)}
