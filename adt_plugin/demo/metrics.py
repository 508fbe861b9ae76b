"""How far generated images are from real ones: distances of sets, coverage, well-formedness, novelty, detectability."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adt_plugin.demo.models import seeded
from adt_plugin.demo.optimizing import adamw


@dataclass(frozen=True)
class ImageSet:
    """What the metrics need of a set of images: features `(N, D)` and pixels `(N, C * H * W)`."""

    features: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Scores:
    """The figures of one set of generated images.

    Attributes:
        fd: Fréchet distance in a network's features, >= 0, lower is better.
        kid: kernel distance in the same features, times 1000; about 0 for equal distributions, lower is better.
        pixel_fd: Fréchet distance of the raw pixels: sees what such features overlook, speckles.
        precision, recall: improved precision and recall in the features, 0..1, higher is better.
        well_formed: share of images that a classifier takes for the asked class with certainty, 0..1.
        novelty: distance to the nearest training image, over that of held-out images; well below 1 is memorisation.
        detectability: accuracy of a fresh classifier that tells real from generated images, on unseen ones of which it
            knows that half are real; 0.5 is perfect. None where it was not measured.
    """

    fd: float
    kid: float
    pixel_fd: float
    precision: float
    recall: float
    well_formed: float
    novelty: float
    detectability: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Return the figures by name, for JSON."""
        return asdict(self)


def coverage(real: Tensor, gen: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Return precision and recall of features `(N, D)` and `(M, D)`.

    They want sets of one size: `gen` is cut into as many chunks of N as it fills, and the mean over the chunks is returned.
    """
    size = min(len(real), len(gen))
    chunks = [chunk for chunk in gen.split(size) if len(chunk) == size]
    pairs = [precision_recall(real[:size], chunk, neighbours) for chunk in chunks]
    precision, recall = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return precision, recall


def kernel_distance(real: Tensor, gen: Tensor) -> float:
    """Return KID: the unbiased squared maximum mean discrepancy of `(N, D)` and `(M, D)` with the kernel (x.y / D + 1)^3.

    Source: arXiv 1801.01401; times 1000 here, as it is usually given. May lie slightly below 0. Both sets are divided by the
    root mean square of the real features, so that networks of other scales than Inception's give comparable numbers.
    """
    scale = real.double().square().mean().sqrt()  # features of about unit size, for which the kernel was made
    real, gen = real.double() / scale, gen.double() / scale

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / real.shape[1] + 1) ** 3

    def mean_of_others(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return 1000 * float(mean_of_others(real) + mean_of_others(gen) - 2 * kernel(real, gen).mean())


def nearest_distance(images: Tensor, train: Tensor) -> float:
    """Return the mean distance of pixels `(N, P)` to the nearest of `(M, P)`."""
    return torch.cdist(images, train).min(dim=1).values.mean().item()


def detectability(real: Tensor, gen: Tensor, steps: int = 300, seed: int = 0) -> float:
    """Return how well a fresh network tells images `(N, C, H, W)` in [-1, 1] apart: accuracy on those it has not seen.

    Both sets are cut to one size and halved; a network trained on one pair of halves is asked about the other, and the two
    accuracies are averaged. 0.5 is chance.
    """
    size = min(len(real), len(gen)) // 2
    halves = [(images[:size], images[size : 2 * size]) for images in (real, gen)]
    return sum(_told_apart(halves[0][i], halves[1][i], halves[0][1 - i], halves[1][1 - i], steps, seed + i) for i in (0, 1)) / 2


def _told_apart(real: Tensor, gen: Tensor, new_real: Tensor, new_gen: Tensor, steps: int, seed: int) -> float:
    channels = real.shape[1]
    with seeded(seed):
        network = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 48, 1)),
        )
    generator, optimizer = torch.Generator().manual_seed(seed), adamw(network, 2e-3)
    with seeded(seed + 100):  # dropout
        for _ in range(steps):
            index = torch.randint(len(real), (2, 32), generator=generator)
            batch = torch.cat([real[index[0]], gen[index[1]]])
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            batch = torch.roll(batch, shift, (2, 3))
            target = torch.cat([torch.ones(32), torch.zeros(32)])
            F.binary_cross_entropy_with_logits(network(batch)[:, 0], target).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        network.eval()
        return higher_half(network(new_real)[:, 0], network(new_gen)[:, 0])


def higher_half(real: Tensor, gen: Tensor) -> float:
    """Return how many are right where the higher half of all scores, `(N,)` and `(N,)`, is called real.

    Half of them are, and whoever is asked knows it. A threshold from training, on other batches and with dropout, lies so far
    off on unseen images that a network which ranks them perfectly was hardly right more often than chance.
    """
    middle = torch.cat([real, gen]).median()
    return float((real > middle).float().mean() + (gen <= middle).float().mean()) / 2


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
