"""Windows of latents: where they lie, and that nothing is drawn where there is no choice."""

from __future__ import annotations

import pytest
import torch

from adt_plugin.core.images.crop import Window, draw_window


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_every_position_is_reached_and_none_beyond_the_image() -> None:
    draws = generator()
    windows = {draw_window(6, 9, 4, draws) for _ in range(500)}
    assert {(w.top, w.left) for w in windows} == {(top, left) for top in range(3) for left in range(6)}
    assert {(w.height, w.width) for w in windows} == {(4, 4)}


@pytest.mark.parametrize(("height", "width", "side"), [(6, 9, 0), (6, 9, 9), (6, 9, 50)])
def test_the_whole_image_needs_no_draw(height: int, width: int, side: int) -> None:
    draws = generator()
    assert draw_window(height, width, side, draws) == Window(0, 0, height, width)
    assert torch.equal(draws.get_state(), generator().get_state())


def test_a_side_shorter_than_the_window_is_taken_whole() -> None:
    window = draw_window(3, 9, 5, generator())
    assert (window.top, window.height, window.width) == (0, 3, 5)


def test_latents_and_images_are_cut_at_the_same_place() -> None:
    latents = torch.arange(48.0).view(1, 1, 6, 8)
    images = latents.repeat_interleave(8, -2).repeat_interleave(8, -1)
    window = Window(1, 3, 2, 4)
    assert torch.equal(window.of(images, 8)[..., ::8, ::8], window.of(latents))
