"""One image again and again, as a run goes on: panels with captions in one picture that grows."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adt_plugin.core.run.files import replacement

if TYPE_CHECKING:
    from PIL import Image

SIDE = 256
"""The longer side of a panel's image in pixels; smaller images are enlarged to it."""

LINE = 12
LETTERS = 40
"""So many letters of a line have room in a panel."""
PANEL_LINES = 4
"""The most lines above a panel's image."""
COLUMNS = 8
MOST = 64
"""Panels that a strip holds; of more, every second goes, so that the whole run stays in sight."""


def panel(image: Tensor, caption: list[str]) -> Image.Image:
    """Draw an image with its caption above it.

    Args:
        image: `(1, 3 or 1, H, W)` in [-1, 1]; of any size.
        caption: lines that a panel of `SIDE` pixels has room for.
    """
    from PIL import Image, ImageDraw

    pixels = Image.fromarray(displayable(image)[0].numpy())
    scale = SIDE / max(pixels.size)
    pixels = pixels.resize((max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale))))
    canvas = Image.new("RGB", (SIDE, SIDE + LINE * len(caption) + 4), "black")
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(caption):
        draw.text((2, 1 + LINE * number), text, fill="white")
    canvas.paste(pixels, (0, canvas.height - SIDE))
    return canvas


def shortened(text: str) -> str:
    """Return a caption as one line that has room in a panel; letters that Pillow's own font may lack become question marks."""
    line = " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")
    return line if len(line) <= LETTERS else line[: LETTERS - 3].rstrip(" ,") + "..."


class Strip:
    """A picture of panels, written anew with each.

    Args:
        path: of a PNG file.
        goes_on: what the file holds stays, and panels come below it.
    """

    def __init__(self, path: Path, goes_on: bool = False) -> None:
        from PIL import Image

        self.path = path
        self.panels: list[Image.Image] = []
        self.above: Image.Image | None = None
        if goes_on and path.is_file():
            with suppress(OSError), Image.open(path) as picture:  # one that is damaged gives way to a new one
                self.above = picture.convert("RGB")

    def add(self, *new: Image.Image) -> None:
        """Take in panels and write the picture, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        self.panels.extend(new)
        while len(self.panels) > MOST:
            newest = self.panels[-1]
            self.panels = [*self.panels[:-1:2], newest]
        with replacement(self.path) as temporary:
            self._drawn().save(temporary, format="PNG")

    def _drawn(self) -> Image.Image:
        from PIL import Image

        top = self.above.height if self.above else 0
        width, height = self.panels[0].width, max(one.height for one in self.panels)
        rows = -(-len(self.panels) // COLUMNS)
        columns = min(COLUMNS, len(self.panels))
        canvas = Image.new("RGB", (max(columns * width, self.above.width if self.above else 0), top + rows * height), "black")
        if self.above:
            canvas.paste(self.above, (0, 0))
        for number, one in enumerate(self.panels):
            canvas.paste(one, (number % COLUMNS * width, top + number // COLUMNS * height))
        return canvas


def displayable(images: Tensor) -> Tensor:
    """Convert `(B, C, H, W)` in [-1, 1] to `(B, H, W, 3)` uint8 on the CPU; very small images are enlarged to 64 pixels."""
    images = images.detach().float().cpu().nan_to_num().clamp(-1, 1)
    factor = -(-64 // images.shape[-1])
    images = F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
