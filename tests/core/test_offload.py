"""Modules that only a part of a turn needs, away from the device the rest of the time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adt_plugin.discriminator import FrozenBackbone
from adt_plugin.offload import Offload
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn


class Travelling(nn.Linear):
    """Remembers where it was sent; nothing really moves."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.places: list[str] = []

    def to(self, device: torch.device | str) -> Travelling:  # type: ignore[override]
        self.places.append(str(device))
        return self


def test_a_module_is_there_inside_and_away_afterwards() -> None:
    module = Travelling()
    with Offload([module], enabled=True).resident(torch.device("cuda")):
        assert module.places == ["cuda"]
    assert module.places == ["cuda", "cpu"]


def test_an_error_inside_sends_it_away_too() -> None:
    module = Travelling()
    with pytest.raises(KeyError), Offload([module], enabled=True).resident(torch.device("cuda")):
        raise KeyError
    assert module.places == ["cuda", "cpu"]


def test_without_the_option_nothing_moves() -> None:
    module = Travelling()
    with Offload([module], enabled=False).resident(torch.device("cuda")):
        pass
    assert module.places == []


def test_a_frozen_backbone_travels_although_it_is_no_submodule() -> None:
    backbone = FrozenBackbone(nn.Linear(2, 2), [2])
    assert next(backbone.to("meta")._network.parameters()).device.type == "meta"


@pytest.mark.parametrize("offload", [False, True])
def test_a_turn_needs_decoder_and_backbone_only_before_the_replay(offload: bool) -> None:
    """Where they are during the unroll and the replay, as the denoiser sees it."""
    turn, net = toy_turn(offload=offload), ToyDenoiser()
    module, seen = Travelling(), []
    turn.offload = Offload([module], offload)
    latents = toy_latents()
    diffusion_backward(turn, net, latents)

    def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(module.places[-1] if module.places else "at home")
        return net(x, t)

    turn(denoiser, latents)
    expected = ["at home", "cpu"] if offload else ["at home", "at home"]
    assert [seen[0], seen[-1]] == expected
