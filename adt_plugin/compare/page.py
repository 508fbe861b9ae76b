"""`comparison.html`: one file that opens anywhere, with every image inside and nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from adt_plugin.compare.figures import against_table, figures_table, meanings
from adt_plugin.compare.inputs import TrainingImage
from adt_plugin.compare.scores import Neighbour, Scores
from adt_plugin.compare.settings import SCORED, Sampling, Settings, Shot
from adt_plugin.compare.verdict import LIMITS, cautions, headline, side_effects, standings

TINY = 160
"""Images whose sides are smaller are shown with sharp pixels."""

LOSSLESS = 256 * 256
"""Images of as many pixels are embedded as they are; larger ones as WebP."""

HUES = ("#8a8f98", "#3f7fe8", "#e07b39", "#2f9e6e", "#a35bd6", "#c94f7c", "#6d8b1e", "#1f9fb5")


@dataclass(frozen=True)
class Contents:
    """All that the page shows.

    Attributes:
        settings: of the comparison.
        title: of the model's family.
        scores: the figures.
        paths: file of each image by (candidate's name, shot).
        references: the training images.
        facts: rows of the table of settings, name -> value.
    """

    settings: Settings
    title: str
    scores: Scores
    paths: Mapping[tuple[str, Shot], Path]
    references: Sequence[TrainingImage]
    facts: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """The candidates' names in the order of the columns."""
        return [candidate.name for candidate in self.settings.candidates]

    def hue(self, name: str) -> str:
        """Return a candidate's colour."""
        return HUES[self.names.index(name) % len(HUES)]


def page(contents: Contents) -> str:
    """Return the whole page as HTML."""
    settings = contents.settings
    prompts = [prompt for prompt in settings.prompts if prompt.purpose == SCORED]
    subtitle = f"{contents.title} · {_many(len(prompts), 'prompt')} × {_many(len(settings.seeds), 'seed')} · " + _sizes(
        settings
    )
    body = [
        f'<header class="fixed"><h1>{escape(" · ".join(contents.names))}</h1><p class="soft">{escape(subtitle)}</p></header>',
        _verdict(contents.scores),
        _figures(contents),
        _images(contents),
        _closest(contents),
        _facts(contents),
    ]
    template = files("adt_plugin.compare").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("@@TITLE@@", escape("Comparison: " + ", ".join(contents.names))).replace(
        "@@BODY@@", "\n".join(body)
    )


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _sizes(settings: Settings) -> str:
    samplings = str(settings.samplings[0]) if len(settings.samplings) == 1 else f"{len(settings.samplings)} samplings"
    return f"{samplings} · {settings.size[0]} × {settings.size[1]} pixels"


def _verdict(scores: Scores) -> str:
    return (
        f'<section class="verdict fixed" id="verdict"><p class="lead">{escape(headline(scores))}</p>'
        f"{_list('effects', [*standings(scores), *side_effects(scores)])}"
        f"{_list('cautions', [*scores.notes, *cautions(scores)])}"
        f"<details><summary>What these figures cannot say</summary><p>{escape(LIMITS)}</p></details></section>"
    )


def _list(name: str, sentences: Sequence[str]) -> str:
    """Return a list of sentences; empty without any."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{name}">{items}</ul>' if items else ""


def _select(name: str, label: str, options: Sequence[str]) -> str:
    if len(options) < 2:
        return ""
    choices = "".join(f'<option value="{i}">{escape(option)}</option>' for i, option in enumerate(options))
    return f'<label>{escape(label)} <select id="{name}">{choices}</select></label>'


def _part(name: str, number: int, content: str) -> str:
    """Return a part that the select of this name shows or hides; only the first is shown without scripts."""
    return f'<div data-part="{name}" data-value="{number}"{"" if number == 0 else " hidden"}>{content}</div>'


def _figures(contents: Contents) -> str:
    scores, hues = contents.scores, {name: contents.hue(name) for name in contents.names}
    tables = [
        _part(
            "scope",
            number,
            f'<p class="soft small">{scope.images} images per candidate, {scores.reference_count} training images'
            + (f", {scores.drift_images} images of unrelated prompts" if scores.drift_images else "")
            + f". Intervals of 95 %.</p>{figures_table(scope, hues)}{against_table(scope, hues)}",
        )
        for number, scope in enumerate(scores.scopes)
    ]
    choice = _select("scope", "figures over", [scope.title for scope in scores.scopes])
    bar = f'<div class="bar">{choice}</div>' if choice else ""
    return f'<section class="fixed"><h2>Figures</h2>{bar}{"".join(tables)}{meanings()}</section>'


def _images(contents: Contents) -> str:
    samplings = contents.settings.samplings
    grids = [_part("sampling", number, _grid(contents, sampling)) for number, sampling in enumerate(samplings)]
    bar = _select("sampling", "sampled with", [str(sampling) for sampling in samplings])
    return (
        '<section id="images"><div class="fixed"><h2>Images</h2><p class="soft small">Same noise in every row. Click for '
        "full size, then flip between candidates with the arrow keys.</p>"
        f'<div class="bar">{bar}<label>size <input type="range" min="64" max="640" value="208" aria-label="size"></label></div>'
        f"</div>{''.join(grids)}</section>"
    )


def _grid(contents: Contents, sampling: Sampling) -> str:
    """Return the table of images of one sampling: a row per prompt and seed, a column per candidate."""
    prompts = [prompt for prompt in contents.settings.prompts if prompt.purpose == SCORED]
    matching = {
        prompt: [image for image in contents.references if image.caption and image.caption == prompt.text] for prompt in prompts
    }
    with_references = any(matching.values())
    columns = [_heading(name, contents.hue(name)) for name in contents.names]
    if with_references:
        columns.append('<th scope="col" class="soft">training image</th>')
    rows = []
    for prompt in prompts:
        negative = f"<small>without: {escape(prompt.negative)}</small>" if prompt.negative else ""
        rows.append(
            f'<tr class="prompt"><td colspan="{len(columns) + 1}"><span>{escape(prompt.text)}{negative}</span></td></tr>'
        )
        for number, seed in enumerate(contents.settings.seeds):
            cells = [_cell(contents, name, Shot(prompt, seed, sampling)) for name in contents.names]
            if with_references:
                cells.append(_reference_cell(matching[prompt][number]) if number < len(matching[prompt]) else "")
            rows.append(f'<tr><td class="seed">seed {seed}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = f"<tr><th></th>{''.join(columns)}</tr>"
    return f'<table class="grid"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _heading(name: str, hue: str) -> str:
    return f'<th scope="col"><span class="dot" style="--hue:{hue}"></span>{escape(name)}</th>'


def _cell(contents: Contents, name: str, shot: Shot) -> str:
    about = f"{shot.prompt.text} · seed {shot.seed} · {shot.sampling}"
    picture = _picture(contents.paths[name, shot], f"{name}: {shot.prompt.text}, seed {shot.seed}")
    return f'<button class="cell" data-name="{escape(name)}" data-about="{escape(about)}">{picture}</button>'


def _reference_cell(image: TrainingImage) -> str:
    about = escape(" · ".join(filter(None, [image.caption, image.path.name])))
    picture = _picture(image.path, f"training image {image.path.name}")
    return f'<button class="cell reference" data-name="training image" data-about="{about}">{picture}</button>'


def _picture(path: Path, alt: str) -> str:
    source, side = embedded(path)
    kind = ' class="tiny"' if side < TINY else ""
    return f'<img{kind} src="{source}" alt="{escape(alt)}" loading="lazy" decoding="async">'


@cache
def embedded(path: Path) -> tuple[str, int]:
    """Return an image file as a data URI, and its longer side in pixels; none is shown larger than 2048."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    image.thumbnail((2048, 2048))
    content, kind = BytesIO(), "PNG" if image.width * image.height <= LOSSLESS else "WEBP"
    image.save(content, format=kind, **({"quality": 90, "method": 4} if kind == "WEBP" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}", max(image.size)


def _closest(contents: Contents) -> str:
    """Return the pairs of generated and training image that are most alike, for each candidate."""
    blocks = []
    for name in contents.names:
        for neighbour in contents.scores.closest[name][:2]:
            reference = contents.references[neighbour.reference]
            images = _cell(contents, name, neighbour.shot) + _reference_cell(reference)
            caption = f"<b>{escape(name)}</b>, {_closeness(contents.scores, neighbour)}: {escape(reference.path.name)}"
            blocks.append(f'<figure class="pair"><div>{images}</div><figcaption>{caption}</figcaption></figure>')
    note = (
        "Each candidate's images that are most like a training image (left), and that training image (right). The same subject "
        "is what you trained for; the same picture is a copy."
    )
    pairs = f'<div class="pairs">{"".join(blocks)}</div>'
    return f'<section class="fixed"><h2>Nearest training images</h2><p class="soft small">{note}</p>{pairs}</section>'


def _closeness(scores: Scores, neighbour: Neighbour) -> str:
    """Return how near a pair is, in units of what is usual among training images."""
    if scores.reference_distance == 0:
        return f"distance {neighbour.distance:.3f}"
    return f"{neighbour.distance / scores.reference_distance:.2f} of the distance between training images"


def _facts(contents: Contents) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in contents.facts.items())
    return f'<section class="fixed"><h2>Settings</h2><table class="settings">{rows}</table></section>'
