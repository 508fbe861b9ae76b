"""A whole comparison: check, render, measure, write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adt_plugin import __version__
from adt_plugin.compare.captions import notes_of
from adt_plugin.compare.families import Model, metadata_of
from adt_plugin.compare.features import Embedder, FeatureCache
from adt_plugin.compare.grid import grid_picture
from adt_plugin.compare.inputs import TrainingImage, read_references
from adt_plugin.compare.page import Contents, page
from adt_plugin.compare.rendering import Store, check_candidates, paths_by_shot, render_all
from adt_plugin.compare.scores import Scores, score_all
from adt_plugin.compare.settings import SCORED, Settings, content_digest, trained_lengths
from adt_plugin.compare.verdict import cautions, headline, side_effects, standings
from adt_plugin.core.run.files import replacement, write_atomically

PAGE, GRID, SCORES = "comparison.html", "grid.png", "scores.json"


def compare(settings: Settings) -> Scores:
    """Make what is missing of a comparison, and write its page, picture and figures into the settings' folder.

    Raises:
        ConfigError: something given is wrong; the sentence names the flag.
    """
    references = read_references(settings.reference)
    model = check_candidates(settings.candidates)
    notes = notes_of(settings, model, trained_lengths(settings.candidates))
    print("".join(f"{note}\n" for note in notes), end="")
    cache = FeatureCache(Embedder(settings.backbone, settings.device), settings.out)
    real = cache.of([image.path for image in references])  # a broken one is found before hours of sampling
    print("Reading the files ...", flush=True)  # gigabytes, once, to know their content
    store = Store(settings, digests_of(settings))
    missing = sum(len(store.missing(candidate)) for candidate in settings.candidates)
    total = len(settings.candidates) * len(settings.shots())
    print(f"{total} images, {total - missing} of them are there already, {missing} to make.")
    if missing:
        with progress("images", missing) as advance:
            render_all(store, advance)
    scores = replace(_measure(settings, store, references, cache, real), notes=tuple(notes))
    _write(settings, model, store, references, scores)
    return scores


def digests_of(settings: Settings) -> dict[Path, str]:
    """Return the content digest of every model, network and part."""
    paths = [*(candidate.path for candidate in settings.candidates), *settings.parts.files()]
    return {path: content_digest(path) for path in dict.fromkeys(paths)}


@contextmanager
def progress(title: str, total: int) -> Iterator[Any]:
    """Show a bar with the time that is left, and give the function that moves it."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit="img", dynamic_ncols=True) as bar:
        yield bar.update


def _measure(settings: Settings, store: Store, references: list[TrainingImage], cache: FeatureCache, real: Tensor) -> Scores:
    shots = settings.shots()
    with progress("features", len(shots) * len(settings.candidates)) as advance:
        features = {
            candidate.name: cache.of([store.path(candidate, shot) for shot in shots], advance)
            for candidate in settings.candidates
        }
    return score_all(shots, features, real, references)


def _write(settings: Settings, model: Model, store: Store, references: list[TrainingImage], scores: Scores) -> None:
    """Write the page, the picture and the figures, each whole or not at all."""
    paths = paths_by_shot(store)
    facts = facts_of(settings, model, scores)
    contents = Contents(settings, model.family.title, scores, paths, references, facts)
    write_atomically(settings.out / PAGE, page(contents))
    with replacement(settings.out / GRID) as file:
        grid_picture(settings, paths).save(file, format="PNG")
    write_atomically(settings.out / SCORES, json.dumps(as_json(settings, store.digests, scores), indent=2))


def facts_of(settings: Settings, model: Model, scores: Scores) -> dict[str, str]:
    """Return the rows of the page's table of settings."""
    rows = {
        ("base" if candidate.kind == "base" else f"{candidate.kind} {candidate.name}"): str(candidate.path)
        for candidate in settings.candidates
    }
    rows |= {
        "family": model.family.title,
        "sampler": "flow Euler" if model.family.flow else settings.sampler,
        "sampling": "; ".join(map(str, settings.samplings)),
        "seeds": ", ".join(map(str, settings.seeds)),
        "size": f"{settings.size[0]} × {settings.size[1]}",
        "training images": f"{settings.reference} ({scores.reference_count})",
        "features": f"class token of {settings.backbone}, {scores.dimensions} numbers per image",
        "precision": f"{settings.dtype} on {settings.device}",
        "written by": f"adt_plugin {__version__}",
    }
    rows |= {
        f"training of {candidate.name}": trained_with(candidate.path)
        for candidate in settings.candidates
        if candidate.kind == "lora"
    }
    if settings.network_mul != 1:
        rows["network_mul"] = f"{settings.network_mul:g}"
    if settings.clip_skip != 1:
        rows["clip_skip"] = str(settings.clip_skip)
    if model.family.chunked:
        rows["max_token_length"] = str(settings.max_token_length)
    return rows


TOLD = ("network_module", "network_dim", "network_alpha", "learning_rate", "optimizer", "steps", "epoch", "adt_weight")
"""What sd-scripts and the plugin leave in a network's metadata, each after `ss_`, that is worth reading beside its images."""


def trained_with(path: Path) -> str:
    """Return how a network was trained, as its metadata says."""
    metadata = metadata_of(path)
    found = [f"{name} {metadata[f'ss_{name}']}" for name in TOLD if metadata.get(f"ss_{name}", "None") != "None"]
    return ", ".join(found) or "the file does not say"


def as_json(settings: Settings, digests: dict[Path, str], scores: Scores) -> dict[str, Any]:
    """Return everything that `scores.json` holds."""
    return {
        "adt_plugin": __version__,
        "verdict": headline(scores),
        "standings": standings(scores),
        "side_effects": side_effects(scores),
        "cautions": [*scores.notes, *cautions(scores)],
        "candidates": [
            {"name": candidate.name, "kind": candidate.kind, "path": str(candidate.path), "sha256": digests[candidate.path]}
            for candidate in settings.candidates
        ],
        "settings": {
            "prompts": [prompt.text for prompt in settings.prompts if prompt.purpose == SCORED],
            "samplings": [asdict(sampling) for sampling in settings.samplings],
            "seeds": settings.seeds,
            "size": settings.size,
            "sampler": settings.sampler,
            "backbone": settings.backbone,
            "dtype": settings.dtype,
            "network_mul": settings.network_mul,
            "clip_skip": settings.clip_skip,
            "max_token_length": settings.max_token_length,
        },
        "training_images": scores.reference_count,
        "scopes": [
            {
                "title": scope.title,
                "images": scope.images,
                "figures": {name: _as_json(figures) for name, figures in scope.figures.items()},
                "differences": [
                    {"of": name, "minus": other, **_as_json(figures)} for (name, other), figures in scope.differences.items()
                ],
            }
            for scope in scores.scopes
        ],
    }


def _as_json(figures: Any) -> dict[str, Any]:
    return {metric: asdict(figure) for metric, figure in figures.items()}
