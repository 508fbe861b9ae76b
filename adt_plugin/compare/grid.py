"""`grid.png`: the images of one sampling as one picture, for where a page cannot be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from adt_plugin.compare.settings import SCORED, Settings, Shot

CELL, GAP, LABELS, HEAD = 256, 8, 220, 40
MOST_ROWS = 12


def grid_picture(settings: Settings, paths: Mapping[tuple[str, Shot], Path]) -> Any:
    """Draw a column per candidate and a row per prompt and seed, at most 12 rows, of the first sampling; a PIL image."""
    from PIL import Image, ImageDraw

    names = [candidate.name for candidate in settings.candidates]
    prompts = [prompt for prompt in settings.prompts if prompt.purpose == SCORED]
    shots = [Shot(prompt, seed, settings.samplings[0]) for prompt in prompts for seed in settings.seeds]
    shots = spread(shots, MOST_ROWS)
    width, height = _cell_size(settings)
    canvas = Image.new("RGB", (LABELS + len(names) * (width + GAP) + GAP, HEAD + len(shots) * (height + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    large, small = _font(18), _font(14)
    for column, name in enumerate(names):
        draw.text((LABELS + column * (width + GAP), 10), name, fill="black", font=large)
    for row, shot in enumerate(shots):
        top = HEAD + row * (height + GAP)
        lines = [*wrap(shot.prompt.text, 28)[:6], f"seed {shot.seed}"]
        draw.multiline_text((GAP, top + 2), "\n".join(lines), fill="#333333", font=small)
        for column, name in enumerate(names):
            with Image.open(paths[name, shot]) as image:
                fitted = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS if image.width > width else 0)
            canvas.paste(fitted, (LABELS + column * (width + GAP), top))
    return canvas


def spread(items: Sequence[Shot], most: int) -> list[Shot]:
    """Return at most so many items, evenly spread."""
    count = min(len(items), most)
    return [items[i * len(items) // count] for i in range(count)]


def _cell_size(settings: Settings) -> tuple[int, int]:
    width, height = settings.size
    factor = CELL / max(width, height)
    return round(width * factor), round(height * factor)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
