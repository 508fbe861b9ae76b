"""Distances between sets of images: Fréchet distance, improved precision and recall, all in one network's features."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """What the metrics need of a set of images: features `(N, D)` and pixels `(N, C * H * W)`."""

    features: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Scores:
    """`fd` and `pixel_fd` >= 0, lower is better; `precision` and `recall` in 0..1, higher is better.

    All but `pixel_fd` are taken in a network's features. `pixel_fd`, the Fréchet distance of the raw pixels, sees what
    such features overlook: speckles.
    """

    fd: float
    precision: float
    recall: float
    pixel_fd: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name, for JSON."""
        return asdict(self)


def score(real: ImageSet, gen: ImageSet, neighbours: int = 3) -> Scores:
    """Return all figures for N real and M generated images.

    Precision and recall want sets of one size: `gen` is cut into as many chunks of N as it fills, and the mean over
    the chunks is returned. The Fréchet distance uses all of `gen`.
    """
    size = min(len(real.features), len(gen.features))
    chunks = [chunk for chunk in gen.features.split(size) if len(chunk) == size]
    pairs = [precision_recall(real.features[:size], chunk, neighbours) for chunk in chunks]
    precision, recall = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    distances = frechet_distance(real.features, gen.features), frechet_distance(real.pixels, gen.pixels)
    return Scores(distances[0], precision, recall, distances[1])


def frechet_distance(real: Tensor, gen: Tensor) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the Gaussians fitted to `(N, D)` and `(M, D)` (arXiv 1706.08500).

    Raises ValueError for sets of fewer than two samples: they have no covariance.
    """
    if min(len(real), len(gen)) < 2:
        raise ValueError("the Fréchet distance needs at least two samples on each side")
    real, gen = real.double(), gen.double()
    return gaussian_distance(real.mean(0), torch.cov(real.T), gen.mean(0), torch.cov(gen.T))


def gaussian_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians: means `(D,)`, covariances `(D, D)`, float64.

    tr (C1 C2)^(1/2) is taken as tr (S C2 S)^(1/2) with S = C1^(1/2): symmetric, so that rounding cannot turn it complex.
    """
    root1 = _symmetric_root(cov1)
    cross = torch.linalg.eigvalsh(root1 @ cov2 @ root1).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(distance.item(), 0.0)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def precision_recall(real: Tensor, gen: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Return improved precision and recall of `(N, D)` against `(M, D)` (arXiv 1904.06991), both in 0..1.

    A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour.
    Precision is the share of generated points inside the real manifold, recall the share of real points inside the
    generated one. Raises ValueError where a set has no k-th neighbour.
    """
    if min(len(real), len(gen)) <= neighbours:
        raise ValueError(f"precision and recall with {neighbours} neighbours need more than {neighbours} samples")
    return _share_inside(gen, real, neighbours), _share_inside(real, gen, neighbours)


def _share_inside(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    radii = _distances(manifold, manifold).kthvalue(neighbours + 1, dim=1).values  # + 1: a point is its own nearest
    inside = (_distances(points, manifold) <= radii).any(dim=1)
    return inside.float().mean().item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
