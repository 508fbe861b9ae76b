"""Distances of sets and pairs of feature vectors, for many resamples at once.

No metrics library takes weights, and the bootstrap needs them: a resample is a row of counts, how often each image is in it.
Drawing images repeatedly instead would count an image as its own neighbour, which biases every distance. With counts of 1
each function is the published figure, and is tested against torch-fidelity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 3


def kernel_distance(gen: Tensor, real: Tensor, gen_counts: Tensor, real_counts: Tensor, unit: Tensor) -> Tensor:
    """Return KID: the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (arXiv 1801.01401).

    Args:
        gen, real: features `(N, D)`, `(M, D)` float64.
        gen_counts, real_counts: how often each is in each resample, `(B, N)`, `(B, M)`.
        unit: `(N,)`; pairs of generated images of one unit are left out, as is every image with itself.

    Returns:
        `(B,)`; about 0 for equal distributions, may lie slightly below.
    """
    within_gen = _mean_over_pairs(_kernel(gen, gen), gen_counts, unit[:, None] != unit[None, :])
    other = ~torch.eye(len(real), dtype=torch.bool)
    within_real = _mean_over_pairs(_kernel(real, real), real_counts, other)
    across = ((gen_counts @ _kernel(gen, real)) * real_counts).sum(1) / (gen_counts.sum(1) * real_counts.sum(1))
    return within_gen + within_real - 2 * across


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_over_pairs(values: Tensor, counts: Tensor, allowed: Tensor) -> Tensor:
    """Return the mean of `(N, N)` over the allowed pairs in each resample `(B, N)`; NaN where it has none."""
    mask = allowed.to(values.dtype)
    total = ((counts @ (values * mask)) * counts).sum(1)
    pairs = ((counts @ mask) * counts).sum(1)
    return torch.where(pairs > 0, total / pairs.clamp(min=1), torch.nan)


def frechet_distance(gen: Tensor, real: Tensor, gen_counts: Tensor, real_counts: Tensor) -> Tensor:
    """Return the Fréchet distance of the Gaussians fitted to each resample (arXiv 1706.08500), `(B,)`, >= 0.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); with C1 = A'A and C2 = B'B the last trace is the sum of the singular values of
    AB', a matrix of images by images, which is small where features are many and images few.

    Args:
        gen, real: features `(N, D)`, `(M, D)` float64.
        gen_counts, real_counts: `(B, N)`, `(B, M)`.
    """
    values = []
    for gen_count, real_count in zip(gen_counts, real_counts, strict=True):
        gen_mean, gen_rows = _centred(gen, gen_count)
        real_mean, real_rows = _centred(real, real_count)
        cross = torch.linalg.svdvals(gen_rows @ real_rows.T).sum()
        spread = gen_rows.square().sum() + real_rows.square().sum()
        values.append(((gen_mean - real_mean).square().sum() + spread - 2 * cross).clamp(min=0))
    return torch.stack(values)


def _centred(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean `(D,)`, and rows A `(n, D)` such that A'A is the sample covariance."""
    present = counts > 0
    features, counts = features[present], counts[present]
    mean = (counts[:, None] * features).sum(0) / counts.sum()
    return mean, (counts / (counts.sum() - 1).clamp(min=1)).sqrt()[:, None] * (features - mean)


def inside(points: Tensor, manifold: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return for each point `(N, D)` whether it lies in the manifold of `(M, D)`: 1 or 0, `(N,)` float64.

    The manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour; the mean over
    generated points in the real manifold is precision, over real points in the generated one recall (arXiv 1904.06991).
    """
    radii = _distances(manifold, manifold).kthvalue(neighbours + 1, dim=1).values  # + 1: a point is its own nearest
    return (_distances(points, manifold) <= radii).any(dim=1).double()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarities `(N, M)` of `(N, D)` and `(M, D)`."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def diversity(gen: Tensor, counts: Tensor, group: Tensor, unit: Tensor) -> Tensor:
    """Return the mean cosine distance of two images of one prompt and sampling with different seeds, `(B,)` in [0, 2].

    Args:
        gen: features `(N, D)` float64.
        counts: `(B, N)`.
        group: `(N,)`, number of prompt and sampling.
        unit: `(N,)`, number of prompt and seed.
    """
    allowed = (group[:, None] == group[None, :]) & (unit[:, None] != unit[None, :])
    return _mean_over_pairs(1 - cosine(gen, gen), counts, allowed)


def weighted_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of `(N,)` in each resample `(B, N)`; values that are NaN are left out."""
    known = ~values.isnan()
    counts = counts[:, known]
    total = counts.sum(1)
    return torch.where(total > 0, (counts @ values[known]) / total.clamp(min=1), torch.nan)


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine distance `(N,)` in [0, 2] of each point to the nearest of the others, and which one it is."""
    found = cosine(points, others).max(dim=1)
    return 1 - found.values, found.indices


def nearest_of_each_other(points: Tensor) -> Tensor:
    """Return the cosine distance `(N,)` of each of at least two points to its nearest neighbour."""
    similarity = cosine(points, points).fill_diagonal_(-torch.inf)
    return 1 - similarity.max(dim=1).values
