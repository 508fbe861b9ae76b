"""Modules that only a part of a turn needs, away from the device the rest of the time."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core.discriminator import FrozenBackbone
from adt_plugin.core.images.offload import Offload
from toys import ToyDenoiser, diffusion_backward, toy_decode, toy_latents, toy_turn

META = torch.device("meta")
"""No storage: `_apply` puts new Parameters in the modules' places."""
CARD = torch.device("cuda", 7)
"""Stands for a GPU: moving there clones, and `_apply` writes the clone into the same Parameter, as it does for a real one."""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that a CPU's tensors are copied to and that is a CPU itself; what lies there is not copied again."""
    move, there = Tensor.to, weakref.WeakSet()

    def to(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        if CARD not in (*args, *kwargs.values()):
            return move(tensor, *args, **kwargs)
        if tensor.untyped_storage() not in there:
            tensor = tensor.detach().clone()
            there.add(tensor.untyped_storage())
        return tensor

    monkeypatch.setattr(Tensor, "to", to)
    return CARD


def device_of(module: nn.Module) -> str:
    return next(module.parameters()).device.type


def test_a_module_is_there_inside_and_its_own_weights_are_back_afterwards() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in module.state_dict().items()}
    with Offload([module], enabled=True).resident(META):
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor.data_ptr() == before[name][1]


def storages(module: nn.Module) -> dict[str, int]:
    return {name: tensor.untyped_storage().data_ptr() for name, tensor in module.state_dict().items()}


class Tied(nn.Module):
    """Two layers of one weight, a buffer that two modules share, and a normalisation with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(3.0))
        self.norm.register_buffer("table", self.table)
        self.requires_grad_(False)


def test_on_a_device_that_copies_every_weight_and_buffer_is_there_inside_and_comes_home(card: torch.device) -> None:
    module, backbone = Tied(), FrozenBackbone(Tied(), [3])
    parts = (module, backbone._network)
    parameters = [dict(part.named_parameters(remove_duplicate=False)) for part in parts]
    home, values = [storages(part) for part in parts], [part.state_dict() for part in parts]
    before = [{name: tensor.clone() for name, tensor in value.items()} for value in values]
    offload = Offload([module, backbone], enabled=True)
    for _ in range(3):
        with offload.resident(card):
            for part, at_home in zip(parts, home, strict=True):
                assert not set(storages(part).values()) & set(at_home.values())
                assert part.first.weight.data_ptr() == part.second.weight.data_ptr()
        assert [storages(part) for part in parts] == home
    for part, known, saved in zip(parts, parameters, before, strict=True):
        assert all(torch.equal(tensor, saved[name]) for name, tensor in part.state_dict().items())
        assert all(known[name] is p for name, p in part.named_parameters(remove_duplicate=False))
        assert part.first.weight is part.second.weight and not part.first.weight.requires_grad


def test_what_lay_on_the_device_is_freed_there(card: torch.device) -> None:
    module = Tied()
    with Offload([module], enabled=True).resident(card):
        copies = [weakref.ref(tensor.untyped_storage()) for tensor in module.state_dict().values()]
    assert not any(copy() for copy in copies)


@pytest.mark.parametrize("fails", ["inside", "on the way"])
def test_after_an_error_every_weight_is_at_home_on_a_device_that_copies(
    card: torch.device, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Tied(), Tied()
    home, move, calls = [storages(first), storages(second)], Tensor.to, []

    def to(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        if fails == "on the way" and len(calls) == 9:
            raise KeyError  # such as the device's memory running out
        return move(tensor, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", to)
    with pytest.raises(KeyError), Offload([first, second], enabled=True).resident(card):
        raise KeyError
    assert len(calls) >= 9 and [storages(first), storages(second)] == home


def test_turns_on_a_device_that_copies_are_turns_without_offloading(card: torch.device) -> None:
    def gradients(offload: bool) -> list[Tensor]:
        turn, net, found = toy_turn(offload=offload), ToyDenoiser(), []
        backbone = turn.discriminator.backbone._network
        home = storages(backbone)
        resident = turn.offload.resident
        turn.offload.resident = lambda device: resident(card)
        for _ in range(3):
            diffusion_backward(turn, net, toy_latents())
            turn(net, toy_latents())
            found.append(net.gradients())
            assert storages(backbone) == home
        return found

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


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
