"""Windows of latents: where they lie, and that nothing is drawn where there is no choice."""

from __future__ import annotations

import pytest
import torch

from adt_plugin.core.images.crop import Crop, draw_crop


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_every_position_is_reached_and_none_beyond_the_image() -> None:
    draws = generator()
    crops = {draw_crop(6, 9, 4, draws) for _ in range(500)}
    assert {(w.top, w.left) for w in crops} == {(top, left) for top in range(3) for left in range(6)}
    assert {(w.height, w.width) for w in crops} == {(4, 4)}


@pytest.mark.parametrize(("height", "width", "side"), [(6, 9, 0), (6, 9, 9), (6, 9, 50)])
def test_the_whole_image_needs_no_draw(height: int, width: int, side: int) -> None:
    draws = generator()
    assert draw_crop(height, width, side, draws) == Crop(0, 0, height, width)
    assert torch.equal(draws.get_state(), generator().get_state())


def test_a_side_shorter_than_the_crop_is_taken_whole() -> None:
    crop = draw_crop(3, 9, 5, generator())
    assert (crop.top, crop.height, crop.width) == (0, 3, 5)


def test_latents_and_images_are_cut_at_the_same_place() -> None:
    latents = torch.arange(48.0).view(1, 1, 6, 8)
    images = latents.repeat_interleave(8, -2).repeat_interleave(8, -1)
    crop = Crop(1, 3, 2, 4)
    assert torch.equal(crop.apply(images, 8)[..., ::8, ::8], crop.apply(latents))


def test_a_crop_is_drawn_from_the_given_generator_alone() -> None:
    def drawn(global_seed: int) -> list[Crop]:
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(global_seed)
        return [draw_crop(64, 64, 8, generator) for _ in range(5)]

    assert drawn(1) == drawn(2) and len(set(drawn(1))) > 1
