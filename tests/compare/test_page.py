"""The page: one file, nothing fetched; and what a real browser makes of it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from adt_plugin.compare.figures import ARROWS, number, shown_metrics
from adt_plugin.compare.grid import grid_picture
from adt_plugin.compare.inputs import TrainingImage, read_references
from adt_plugin.compare.page import HUES, Contents, embedded, page
from adt_plugin.compare.scores import Figure, Metric, score_all
from adt_plugin.compare.settings import SCORED, Candidate, Prompt, Sampling, Settings, Shot
from adt_plugin.compare.verdict import headline
from browser import browse, places

COLOURS = {"base": (200, 30, 30), "plain": (30, 160, 30), "adt <b>": (30, 30, 200)}


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path) -> Contents:
    """Three candidates whose images are of one colour each, two prompts, two seeds, two samplings."""
    names, folder = list(COLOURS), tmp_path_factory.mktemp("images")
    candidates = (Candidate("base", "base", Path("sd.safetensors")), *(Candidate(n, "lora", Path("a")) for n in names[1:]))
    settings = Settings(
        candidates=candidates,
        prompts=(Prompt("a red square"), Prompt("<script>alert(1)</script> & more", "ugly")),
        samplings=(Sampling(10, 7.0), Sampling(20, 7.0)),
        seeds=(1, 2),
        size=(300, 300),
        sampler="euler",
        reference=tiny_images,
        out=folder,
        backbone="dino",
        device="cpu",
        dtype="float32",
    )
    shots, paths = settings.shots(), {}
    for name, colour in COLOURS.items():
        for place, shot in enumerate(shots):
            paths[name, shot] = folder / f"{colour[0]}-{colour[1]}-{place}.png"
            Image.new("RGB", (300, 300), colour).save(paths[name, shot])
    references = read_references(tiny_images)
    generator = torch.Generator().manual_seed(0)
    features = {name: torch.randn(len(shots), 8, generator=generator) for name in names}
    scores = score_all(shots, features, torch.randn(len(references), 8, generator=generator), references)
    return Contents(settings, "Stable Diffusion", scores, paths, references, {"base": "sd.safetensors", "note": "<i>"})


class Outline(HTMLParser):
    """Tags and attributes of a page, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


def test_nothing_is_fetched_and_every_image_is_inside(contents: Contents) -> None:
    text = page(contents)
    outline = Outline(text)
    sources = [found["src"] or "" for found in outline.named("img") if "src" in found]
    assert len(sources) == 3 * 8 + 2 + 6 * 2  # the grids, the training image of the first prompt in both, nearest pairs
    for source in sources:
        assert source.startswith("data:image/")
        Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))).load()
    assert not re.search(r"https?://|//cdn|url\(|@import", text)
    assert {tag for tag, found in outline.tags if found.get("src") or found.get("href")} == {"img"}
    assert outline.named("meta", **{"http-equiv": "Content-Security-Policy"})


def test_names_and_prompts_are_text_and_never_markup(contents: Contents) -> None:
    text = page(contents)
    assert "alert(1)</script>" not in text and "<i>" not in text and "adt <b>" not in text
    assert "<script>alert(1)</script> & more" in Outline(text).texts


def test_the_grid_has_a_column_per_candidate_and_the_training_images_with_the_caption(contents: Contents) -> None:
    outline = Outline(page(contents))
    cells = [
        found for found in outline.named("button") if found["class"] == "cell" and "10 steps" in (found["data-about"] or "")
    ]
    by_name = [sum(found["data-name"] == name for found in cells) for name in COLOURS]
    assert min(by_name) >= 4
    assert len([found for found in outline.named("button", **{"data-name": "training image"})]) == 2 + 6


@pytest.mark.parametrize(("value", "shown"), [(-0.0004, "0.000"), (-0.0006, "−0.001"), (0.0, "0.000"), (1.25, "+1.250")])
def test_a_difference_that_rounds_to_zero_has_no_sign(value: float, shown: str) -> None:
    assert number(value, 3, signed=True) == shown


def test_small_images_stay_lossless_and_large_ones_are_compressed(tmp_path: Path) -> None:
    for side, kind in ((64, "png"), (600, "webp")):
        path = tmp_path / f"{side}.png"
        Image.effect_noise((side, side), 50).convert("RGB").save(path)
        source, shown = embedded(path)
        assert source.startswith(f"data:image/{kind};") and shown == side
        assert Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))).size == (side, side)


def test_the_picture_has_a_column_per_candidate_in_its_colours(contents: Contents) -> None:
    picture = grid_picture(contents.settings, contents.paths)
    found = {colour for _, colour in picture.getcolors(1 << 20)}
    assert set(COLOURS.values()) <= found
    first = contents.settings
    rows = [Shot(prompt, seed, first.samplings[0]) for prompt in first.prompts for seed in first.seeds]
    assert picture.height > len(rows) * 256


def test_a_picture_of_many_prompts_shows_some_of_all(contents: Contents) -> None:
    prompts = tuple(Prompt(f"prompt {i}") for i in range(40))
    settings = replace(contents.settings, prompts=prompts)
    same = next(iter(contents.paths.values()))
    paths = {(c.name, shot): same for c in settings.candidates for shot in settings.shots()}
    assert grid_picture(settings, paths).height < 13 * 264 + 40


# A real browser


@pytest.fixture
def written(contents: Contents, tmp_path: Path) -> Path:
    path = tmp_path / "comparison.html"
    path.write_text(page(contents), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: str, written: Path, tmp_path: Path) -> Callable[..., str]:
    return lambda *options: browse(browser, written, tmp_path, *options)


WINDOW = "--window-size=1400,2600"


def test_a_browser_shows_the_images_in_columns(opened: Callable[..., str], tmp_path: Path) -> None:
    """Each candidate's images are of one colour: whole columns of it are on the screenshot, beneath their heading."""
    opened(WINDOW, f"--screenshot={tmp_path / 'page.png'}")
    picture = Image.open(tmp_path / "page.png").convert("RGB")
    assert picture.width == 1400
    masks = [Image.eval(distance(picture, colour), lambda value: 255 * (value < 8)) for colour in COLOURS.values()]
    for mask in masks:
        assert 4 <= mask.histogram()[255] / 208**2 < 5.5, "four images of 208 pixels, and a share in the nearest pairs"
    top = (masks[0].getbbox() or (0, 0, 0, 0))[1]
    first_row = [mask.crop((0, top, 1400, top + 200)).getbbox() for mask in masks]
    columns = [(box[0], box[2]) for box in first_row if box]
    assert columns == sorted(columns) and [right - left for left, right in columns] == [208] * 3


def test_a_browser_shows_verdict_and_figures(
    browser: str, written: Path, opened: Callable[..., str], tmp_path: Path, contents: Contents
) -> None:
    """Every cell of the table has its text, as the browser says, and dark letters on light ground at its place."""
    opened(WINDOW, "--blink-settings=preferredColorScheme=1", f"--screenshot={tmp_path / 'page.png'}")
    picture = Image.open(tmp_path / "page.png").convert("RGB")
    (verdict,) = places(browser, written, tmp_path, "#verdict .lead", WINDOW)
    assert verdict.text == headline(contents.scores)
    scope = contents.scores.scopes[0]
    shown = shown_metrics(scope)
    cells = places(browser, written, tmp_path, "div:not([hidden]) > .scroll:first-of-type > .figures :is(th, td)", WINDOW)
    rows = [cells[first : first + 1 + len(shown)] for first in range(0, len(cells), 1 + len(shown))]
    assert [cell.text for cell in rows[0]] == ["", *(f"{metric.title} {ARROWS[metric.better]}".strip() for metric in shown)]
    for row, (name, figures) in zip(rows[1:], scope.figures.items(), strict=True):
        assert [cell.text.splitlines()[0] for cell in row] == [name, *(value_of(figures, metric) for metric in shown)]
    for place in [verdict, *cells[1:]]:
        dark, light = picture.crop(place.box).convert("L").getextrema()
        assert dark < 110 and light > 230, place
    hues = [row[0] for row in rows[1:]]
    for place, hue in zip(hues, HUES, strict=False):
        colours = {colour for _, colour in picture.crop(place.box).getcolors(1 << 16)}
        assert tuple(bytes.fromhex(hue[1:])) in colours, "the candidate's colour beside its name"


def value_of(figures: Mapping[str, Figure], metric: Metric) -> str:
    """What stands in a cell."""
    return number(figures[metric.name].value, metric.digits) if metric.name in figures else "–"


def distance(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The largest difference of the channels from a colour."""
    from PIL import ImageChops

    red, green, blue = ImageChops.difference(picture, Image.new("RGB", picture.size, colour)).split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def test_a_browser_runs_the_scripts_and_shows_one_sampling_at_a_time(opened: Callable[..., str]) -> None:
    outline = Outline(opened("--dump-dom"))
    parts = outline.named("div", **{"data-part": "sampling"})
    assert [("hidden" in found) for found in parts] == [False, True]
    assert len(outline.named("table", **{"class": "grid"})) == 2
    assert len(outline.named("table", **{"class": "figures"})) == 2 * 3
    assert outline.named("section", id="verdict")


def test_a_click_shows_the_image_at_full_size_with_its_caption(browser: str, contents: Contents, tmp_path: Path) -> None:
    """Driven by a script that is added to the page: a click on the second candidate, then an arrow to the third."""
    click = (
        'document.querySelectorAll(".grid .cell")[1].click();'
        'dialog.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));'
        'document.title = [dialog.open, about.textContent, large.naturalWidth].join("|");'
    )
    path = tmp_path / "clicked.html"
    path.write_text(page(contents).replace("</body>", f"<script>{click}</script></body>"), encoding="utf-8")
    found = re.search(r"<title>(.*?)</title>", browse(browser, path, tmp_path, "--dump-dom"))
    assert found and found[1].startswith("true|adt &lt;b&gt;a red square · seed 1 · 10 steps, guidance 7")


def test_the_page_is_dark_where_the_system_is(opened: Callable[..., str], tmp_path: Path) -> None:
    for scheme, bright in (("1", True), ("0", False)):
        opened(
            f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={tmp_path / 'page.png'}", "--window-size=600,400"
        )
        corner = Image.open(tmp_path / "page.png").convert("L").getpixel((5, 5))
        assert (corner > 200) == bright and (corner < 50) != bright


def test_references_without_captions_leave_their_column_out(contents: Contents) -> None:
    bare = replace(contents, references=[TrainingImage(image.path) for image in contents.references])
    assert "training image</th>" in page(contents) and "training image</th>" not in page(bare)
    assert all(prompt.purpose == SCORED for prompt in contents.settings.prompts)
