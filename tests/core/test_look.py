"""A look between turns, and the strip of what was seen."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adt_plugin.core.look import look
from adt_plugin.core.run.state import capture
from adt_plugin.core.run.strip import COLUMNS, LINE, MOST, SIDE, Strip, panel
from toys import ToyDenoiser, diffusion_backward, toy_decode, toy_latents, toy_turn


def trained(looks: bool, sampler: str) -> tuple[dict[str, Tensor], Tensor]:
    """Three turns, with a look before, between and after them or without; everything that a turn leaves, and the gradient."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    turn, net = toy_turn(sampler, warmup=1), ToyDenoiser(dropout=0.1)
    for _ in range(3):
        if looks:
            look(turn, net, toy_latents(), 5, 7)
        diffusion_backward(turn, net, toy_latents())
        turn(net, toy_latents())
    if looks:
        look(turn, net, toy_latents(), 3, 7)
    draws = {"torch": torch.rand(3), "random": torch.tensor(random.random()), "numpy": torch.tensor(np.random.rand())}
    return capture(turn, turn.config).tensors | draws, net.gradients()


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++"])
def test_looks_leave_no_trace(sampler: str) -> None:
    """Neither in the gradient nor in heads, moments, statistics, generators or the global random state."""
    (with_looks, gradient), (without, expected) = trained(True, sampler), trained(False, sampler)
    assert torch.equal(gradient, expected) and with_looks.keys() == without.keys()
    assert all(torch.equal(with_looks[name], without[name]) for name in without)


def test_the_same_look_sees_the_same_and_another_model_something_else() -> None:
    turn, net = toy_turn(), ToyDenoiser()
    first, again = (look(turn, net, toy_latents(), 5, 7) for _ in range(2))
    assert torch.equal(first.gen, again.gen) and (first.score_gen, first.score_real) == (again.score_gen, again.score_real)
    assert first.gen.shape == (1, 3, 16, 16) and torch.equal(first.real, toy_decode(toy_latents()[:1]))
    with torch.no_grad():
        net.last.bias += 0.5
    assert not torch.equal(look(turn, net, toy_latents(), 5, 7).gen, first.gen)


class SmallDevice:
    """Decodes at most so many latents along a side."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, latents: Tensor) -> Tensor:
        if latents.shape[-1] > self.most:
            raise torch.cuda.OutOfMemoryError("as on a card that is full")
        return toy_decode(latents)


def test_where_the_whole_does_not_fit_the_middle_is_shown() -> None:
    turn = toy_turn(decode_crop=32)
    turn.decode = SmallDevice(4)
    seen = look(turn, ToyDenoiser(), toy_latents(), 5, 7)
    assert torch.equal(seen.real, toy_decode(toy_latents()[:1, :, 2:6, 2:6])) and seen.gen.shape == (1, 3, 8, 8)


def test_a_panel_keeps_the_shape_of_its_image_and_says_what_it_is() -> None:
    drawn = panel(torch.ones(1, 3, 32, 64), ["turn 100", "score"])
    assert drawn.size == (SIDE, SIDE + 2 * LINE + 4)
    top = drawn.height - SIDE
    assert drawn.getpixel((SIDE - 1, top + SIDE // 2 - 1)) == (255, 255, 255)
    assert drawn.getpixel((SIDE - 1, top + SIDE // 2 + 1)) == (0, 0, 0)
    assert any(drawn.getpixel((x, y)) != (0, 0, 0) for x in range(60) for y in range(LINE))


def colour(value: int) -> Image.Image:
    return Image.new("RGB", (4, 6), (value, 0, 0))


def test_a_strip_grows_row_by_row(tmp_path: Path) -> None:
    strip = Strip(tmp_path / "x.png")
    for number in range(COLUMNS + 1):
        strip.add(colour(10 + number))
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (4 * COLUMNS, 12)
        assert [picture.getpixel((4 * n, 0))[0] for n in range(COLUMNS)] == list(range(10, 10 + COLUMNS))
        assert picture.getpixel((0, 6)) == (10 + COLUMNS, 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_long_strip_thins_out_and_keeps_the_first_and_the_newest_panel(tmp_path: Path) -> None:
    strip = Strip(tmp_path / "x.png")
    strip.add(*map(colour, range(MOST)))
    strip.add(colour(200))
    kept = [one.getpixel((0, 0))[0] for one in strip.panels]
    assert kept == [*range(0, MOST, 2), 200]


def test_a_strip_that_goes_on_keeps_what_was_there_and_a_damaged_one_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Strip(path).add(colour(1), colour(2))
    Strip(path, goes_on=True).add(colour(3))
    with Image.open(path) as picture:
        assert picture.size == (8, 12) and picture.getpixel((4, 0)) == (2, 0, 0) and picture.getpixel((0, 6)) == (3, 0, 0)
    path.write_bytes(b"no picture")
    Strip(path, goes_on=True).add(colour(4))
    with Image.open(path) as picture:
        assert picture.size == (4, 6)
