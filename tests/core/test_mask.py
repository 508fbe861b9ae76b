"""Masks and weights: outside of the mask nothing is judged or trained; ones change no bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adt_plugin.core.images.crop import Crop, draw_crop
from adt_plugin.core.images.mask import draw_crop_on, paste
from adt_plugin.core.report import TurnReport
from adt_plugin.core.turn import AdversarialTurn
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn

SIZE = 64
"""Pixels of the toys' images along a side, at 8 to a latent."""


def left_half(batch: int = 2) -> Tensor:
    mask = torch.zeros(batch, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    return mask


def one_turn(turn: AdversarialTurn, **keywords: object) -> tuple[Tensor, TurnReport]:
    """The sum of both gradients in the denoiser, and the report."""
    net = ToyDenoiser()
    diffusion_backward(turn, net, toy_latents())
    report = turn(net, toy_latents(), **keywords)
    return net.gradients(), report


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, Tensor]]:
    """The gradients dL/do that every turn hands to its replay."""
    seen: list[dict[int, Tensor]] = []
    monkeypatch.setattr("adt_plugin.core.turn.replay", lambda denoiser, path, vectors, backward: seen.append(vectors))
    return seen


# Masks


def test_what_lies_outside_of_the_mask_is_real_and_has_no_gradient() -> None:
    gen, real = (torch.rand(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4], mask[..., 4:6] = 1.0, 0.5
    pasted = paste(gen, real, mask)
    assert torch.equal(pasted[..., :2], gen[..., :2]) and torch.equal(pasted[..., 3], real[..., 3])
    torch.testing.assert_close(pasted[..., 2], (gen[..., 2] + real[..., 2]) / 2)
    pasted.sum().backward()
    assert gen.grad is not None
    assert gen.grad[0, 0, 0].tolist() == [1.0, 1.0, 0.5, 0.0]


def test_the_turns_gradient_lies_within_the_mask(applied: list[dict[int, Tensor]]) -> None:
    """The toys' decoder and sampler keep every latent at its place."""
    _, report = one_turn(toy_turn(decode_crop=0), mask=left_half())
    (vectors,) = applied
    assert vectors and report.grad_norm > 0
    for vector in vectors.values():
        assert vector[..., 4:].abs().max() == 0 and vector[..., :4].abs().amin((0, 2, 3)).max() > 0


def test_the_picture_shows_what_is_judged() -> None:
    _, report = one_turn(toy_turn(decode_crop=0), mask=left_half())
    half = report.gen.shape[-1] // 2
    assert torch.equal(report.gen[..., half:], report.real[..., half:])
    assert not torch.equal(report.gen[..., :half], report.real[..., :half])


@pytest.mark.parametrize("memory", ["low", "fast"])
@pytest.mark.parametrize("crop", [0, 32])
def test_a_mask_of_ones_changes_no_bit(memory: str, crop: int) -> None:
    plain, masked = (toy_turn(decode_crop=crop, memory=memory) for _ in range(2))
    for _ in range(2):
        expected, found = one_turn(plain), one_turn(masked, mask=torch.ones(2, 1, SIZE, SIZE))
        assert torch.equal(found[0], expected[0]) and found[1].loss_d == expected[1].loss_d
    for a, b in zip(plain.discriminator.parameters(), masked.discriminator.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("balance", ["ratio", "cap", "none"])
def test_an_empty_mask_trains_nothing_and_spoils_nothing(balance: str, applied: list[dict[int, Tensor]]) -> None:
    turn = toy_turn(balance=balance)
    _, report = one_turn(turn, mask=torch.zeros(2, 1, SIZE, SIZE))
    assert not report.skipped and report.grad_norm == 0
    assert all(vector.abs().max() == 0 for vector in applied[0].values())
    assert one_turn(turn)[1].grad_norm > 0


def test_crops_are_drawn_where_something_is_trained() -> None:
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 200:208, 8:24] = 1
    generator = torch.Generator().manual_seed(0)
    crops = [draw_crop_on(mask, 32, 32, 8, generator) for _ in range(50)]
    assert {crop.top for crop in crops} == set(range(18, 25)) and {crop.left for crop in crops} == {0, 1, 2}


def test_a_crop_holds_a_part_of_every_images_mask_if_it_can() -> None:
    mask = torch.zeros(2, 1, 128, 128)
    mask[0, :, 40:48, 40:48] = mask[1, :, 72:80, 72:80] = 1
    generator = torch.Generator().manual_seed(0)
    crops = [draw_crop_on(mask, 16, 16, 8, generator) for _ in range(20)]
    assert all(crop.apply(mask, 8).flatten(1).any(1).all() for crop in crops)


def test_masks_of_ones_draw_what_is_drawn_without() -> None:
    plain, masked = (torch.Generator().manual_seed(1) for _ in range(2))
    for _ in range(5):
        assert draw_crop_on(torch.ones(2, 1, 64, 64), 8, 8, 3, masked) == draw_crop(8, 8, 3, plain)


def test_an_empty_mask_leaves_every_crop_as_it_was_drawn() -> None:
    assert draw_crop_on(torch.zeros(1, 1, 64, 64), 8, 8, 0, torch.Generator()) == Crop(0, 0, 8, 8)


# Weights


def test_every_images_gradient_is_multiplied_by_its_weight(applied: list[dict[int, Tensor]]) -> None:
    one_turn(toy_turn())
    _, report = one_turn(toy_turn(), weights=torch.tensor([0.25, 0.0]))
    plain, weighed = applied
    assert plain.keys() == weighed.keys()
    for position, vector in plain.items():
        assert torch.equal(weighed[position][0], 0.25 * vector[0]) and weighed[position][1].abs().max() == 0
    norm = torch.stack([vector.norm() for vector in weighed.values()]).norm()
    assert report.grad_norm == pytest.approx(float(norm)) and report.grad_norm > 0


def test_weights_of_one_change_no_bit() -> None:
    assert torch.equal(one_turn(toy_turn(), weights=torch.ones(2))[0], one_turn(toy_turn())[0])


@pytest.mark.parametrize("balance", ["ratio", "cap", "none"])
def test_no_balance_takes_a_weight_back(balance: str, applied: list[dict[int, Tensor]]) -> None:
    _, full = one_turn(toy_turn(balance=balance))
    _, half = one_turn(toy_turn(balance=balance), weights=torch.tensor([0.5, 0.5]))
    assert half.grad_norm == pytest.approx(0.5 * full.grad_norm)
