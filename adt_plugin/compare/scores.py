"""The figures of every candidate, with bootstrap intervals, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adt_plugin.compare import metrics
from adt_plugin.compare.inputs import TrainingImage
from adt_plugin.compare.settings import NEUTRAL, SCORED, Sampling, Shot

RESAMPLES = 1000
FRECHET_RESAMPLES = 100  # each needs a decomposition
LEVEL = 0.95


@dataclass(frozen=True)
class Metric:
    """One column of the table.

    Attributes:
        name: as in `scores.json`.
        title: of the column.
        better: `lower` or `higher`, or an empty string where neither is.
        meaning: one sentence for the page.
        digits: after the point.
    """

    name: str
    title: str
    better: str
    meaning: str
    digits: int = 3


METRICS = (
    Metric(
        "kid",
        "KID",
        "lower",
        "distance of the generated images, as a set, to the training images: kernel distance in DINOv2 features; about 0 for "
        "images of the same kind. The first figure to look at: the number of images does not bias it.",
        3,
    ),
    Metric(
        "fd",
        "Fréchet",
        "lower",
        "the same question asked by the Fréchet distance in the same features. With few images it is too large, for all "
        "candidates alike.",
        1,
    ),
    Metric("precision", "precision", "higher", "share of generated images that look like training images.", 2),
    Metric("recall", "recall", "higher", "share of training images that the generated ones cover.", 2),
    Metric(
        "similarity",
        "similarity",
        "higher",
        "cosine similarity to the training image with the same caption (to all of them where no caption is the prompt), as in "
        "PEFT's image-generation benchmark.",
        3,
    ),
    Metric(
        "drift",
        "drift",
        "lower",
        "how far images of unrelated prompts have moved away from the base's: 1 - cosine similarity, as in PEFT's benchmark.",
        3,
    ),
    Metric(
        "diversity",
        "diversity",
        "higher",
        "cosine distance of two images of one prompt with different seeds. Below the base's: seeds matter less.",
        3,
    ),
    Metric(
        "nearest",
        "nearest",
        "",
        "distance of each image to the nearest training image, over that of training images among each other. Well below 1 "
        "means copies.",
        2,
    ),
)


@dataclass(frozen=True)
class Figure:
    """A value and its interval of 95 %; None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


Figures = dict[str, Figure]
"""Name of a metric -> its figure; a metric that cannot be had is missing."""


@dataclass(frozen=True)
class Neighbour:
    """A generated image, and the training image that is nearest to it."""

    shot: Shot
    reference: int
    distance: float


@dataclass
class Scope:
    """Figures over a part of the images: one sampling, or all together.

    Attributes:
        title: what the part is.
        images: how many each candidate has in it.
        figures: by candidate.
        differences: by (candidate, the one that it is compared with): candidate minus the other, same seeds and prompts.
    """

    title: str
    images: int
    figures: dict[str, Figures] = field(default_factory=dict)
    differences: dict[tuple[str, str], Figures] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """All figures of a comparison.

    Attributes:
        scopes: all samplings together first, then each alone where there are several.
        closest: by candidate, its images that are nearest to a training image, nearest first.
        reference_count: number of training images.
        reference_distance: mean distance of a training image to its nearest neighbour among them.
        dimensions: of the features.
        drift_images: number of images of unrelated prompts, per candidate.
        notes: what was said of the comparison before an image was made, in sentences.
    """

    scopes: list[Scope]
    closest: dict[str, list[Neighbour]]
    reference_count: int
    reference_distance: float
    dimensions: int
    drift_images: int
    notes: tuple[str, ...] = ()


class Resamples:
    """Counts of every bootstrap resample; the first row is the sample itself.

    Prompts with their seeds are drawn with repeats, and training images likewise; the same draws for every candidate, so that
    differences are of pairs.

    Args:
        units: number of (prompt, seed) pairs.
        references: number of training images.
        seed: of the draws.
    """

    def __init__(self, units: int, references: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.units = _counts(units, generator)
        self.references = _counts(references, generator)


def _counts(size: int, generator: torch.Generator) -> Tensor:
    """Return how often each of `size` things is in each resample: `(1 + RESAMPLES, size)` float64, the first row ones."""
    if size == 0:
        return torch.ones(1 + RESAMPLES, 0, dtype=torch.float64)
    draws = torch.randint(size, (RESAMPLES, size), generator=generator)
    ones = torch.ones(RESAMPLES, size, dtype=torch.float64)
    counts = torch.zeros_like(ones).scatter_add_(1, draws, ones)
    return torch.cat([ones[:1], counts])


def score_all(
    shots: Sequence[Shot],
    features: Mapping[str, Tensor],
    reference: Tensor,
    images: Sequence[TrainingImage],
) -> Scores:
    """Compute every figure.

    Args:
        shots: the images of a candidate, in order.
        features: by candidate, the base first: `(len(shots), D)`.
        reference: `(M, D)` of the training images.
        images: the training images, for their captions.
    """
    reference = reference.double()
    features = {name: vectors.double() for name, vectors in features.items()}
    samplings = list(dict.fromkeys(shot.sampling for shot in shots))
    parts: list[tuple[str, list[Sampling]]] = [(str(sampling), [sampling]) for sampling in samplings]
    if len(parts) > 1:
        parts.insert(0, ("all together", samplings))
    own = metrics.nearest_of_each_other(reference)
    scopes = []
    for title, chosen in parts:
        values = {name: _values(shots, vectors, features, reference, images, chosen, own) for name, vectors in features.items()}
        count = sum(shot.prompt.purpose == SCORED and shot.sampling in chosen for shot in shots)
        scopes.append(_scope(title, count, values))
    drifting = sum(shot.prompt.purpose == NEUTRAL for shot in shots)
    closest = {name: _closest(shots, vectors, reference) for name, vectors in features.items()}
    return Scores(scopes, closest, len(reference), float(own.mean()), reference.shape[1], drifting)


def _values(
    shots: Sequence[Shot],
    vectors: Tensor,
    features: Mapping[str, Tensor],
    reference: Tensor,
    images: Sequence[TrainingImage],
    samplings: Sequence[Sampling],
    own: Tensor,
) -> dict[str, Tensor]:
    """Return every metric of one candidate in every resample: name -> `(1 + resamples,)`, the first of all images."""
    index = [i for i, shot in enumerate(shots) if shot.prompt.purpose == SCORED and shot.sampling in samplings]
    chosen, gen = [shots[i] for i in index], vectors[index]
    unit = _numbers([(shot.prompt, shot.seed) for shot in chosen])
    group = _numbers([(shot.prompt, shot.sampling) for shot in chosen])
    resamples = Resamples(int(unit.max()) + 1, len(reference))
    counts, real_counts = resamples.units[:, unit], resamples.references
    few = slice(0, 1 + FRECHET_RESAMPLES)
    found = {
        "kid": metrics.kernel_distance(gen, reference, counts, real_counts, unit),
        "fd": metrics.frechet_distance(gen, reference, counts[few], real_counts[few]),
        "similarity": metrics.weighted_mean(similarities(chosen, gen, reference, images), counts),
        "diversity": metrics.diversity(gen, counts, group, unit),
        "nearest": metrics.weighted_mean(metrics.nearest(gen, reference)[0], counts) / metrics.weighted_mean(own, real_counts),
    }
    if min(len(gen), len(reference)) > metrics.NEIGHBOURS:
        found["precision"] = metrics.weighted_mean(metrics.inside(gen, reference), counts)
        found["recall"] = metrics.weighted_mean(metrics.inside(reference, gen), real_counts)
    base = next(iter(features.values()))
    neutral = [i for i, shot in enumerate(shots) if shot.prompt.purpose == NEUTRAL]
    if neutral and vectors is not base:
        distances = 1 - torch.cosine_similarity(vectors[neutral], base[neutral])
        found["drift"] = metrics.weighted_mean(distances, Resamples(len(neutral), 1).units)
    return found


def _numbers(keys: Sequence[object]) -> Tensor:
    """Return the number of each key's first appearance, `(N,)`."""
    known: dict[object, int] = {}
    return torch.tensor([known.setdefault(key, len(known)) for key in keys])


def similarities(shots: Sequence[Shot], gen: Tensor, reference: Tensor, images: Sequence[TrainingImage]) -> Tensor:
    """Return each image's mean cosine similarity to the training images of its prompt, `(N,)` in [-1, 1].

    Where no training image has the prompt as its caption, to all of them.
    """
    matrix = metrics.cosine(gen, reference)
    rows = []
    for shot, row in zip(shots, matrix, strict=True):
        same = torch.tensor([image.caption == shot.prompt.text for image in images])
        rows.append(row[same].mean() if bool(same.any()) else row.mean())
    return torch.stack(rows)


def _scope(title: str, count: int, values: Mapping[str, Mapping[str, Tensor]]) -> Scope:
    """Return the figures and differences of one part."""
    scope = Scope(title, count)
    for name, found in values.items():
        scope.figures[name] = _figures(found)
    names = list(values)
    pairs = [(name, other) for i, name in enumerate(names) for other in names[:i]]
    for name, other in pairs:
        shared = [metric for metric in values[name] if metric in values[other]]
        scope.differences[name, other] = _figures({metric: values[name][metric] - values[other][metric] for metric in shared})
    return scope


def _figures(values: Mapping[str, Tensor]) -> Figures:
    """Return the figures of those metrics that have a value."""
    return {metric: figure for metric, samples in values.items() if (figure := figure_of(samples))}


def figure_of(samples: Tensor) -> Figure | None:
    """Return the value and interval of `(1 + B,)`, the first being the value; None where it is not a number.

    The interval is that of the resamples, moved so that their mean is the value: repeats shift a distance of sets upward.
    """
    value, rest = samples[0], samples[1:]
    if not bool(value.isfinite()):
        return None
    rest = rest[rest.isfinite()]
    if len(rest) < 2 or bool(rest.std() == 0):
        return Figure(float(value))
    bounds = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=rest.dtype)
    low, high = (torch.quantile(rest, bounds) + value - rest.mean()).tolist()
    return Figure(float(value), low, high)


def _closest(shots: Sequence[Shot], vectors: Tensor, reference: Tensor, most: int = 4) -> list[Neighbour]:
    """Return the images that are nearest to a training image."""
    index = [i for i, shot in enumerate(shots) if shot.prompt.purpose == SCORED]
    distances, which = metrics.nearest(vectors[index], reference)
    order = distances.argsort()[:most].tolist()
    return [Neighbour(shots[index[i]], int(which[i]), float(distances[i])) for i in order]
