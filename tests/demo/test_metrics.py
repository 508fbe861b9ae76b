"""The metrics against closed forms and against a second route."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from adt_plugin.demo.metrics import (
    coverage,
    detectability,
    frechet_distance,
    gaussian_distance,
    higher_half,
    kernel_distance,
    nearest_distance,
    precision_recall,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_covariance(size: int, seed: int) -> Tensor:
    root = normal(size, size, seed=seed)
    return root @ root.T


def distance_by_sqrtm(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The formula as it is usually written, with a general matrix square root."""
    root = np.real(linalg.sqrtm(cov1.numpy() @ cov2.numpy()))
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * np.trace(root))


def test_equal_gaussians_have_no_distance():
    covariance = random_covariance(6, seed=1)
    assert gaussian_distance(normal(6), covariance, normal(6), covariance) == pytest.approx(0, abs=1e-9)


def test_moved_gaussians_are_as_far_apart_as_their_means():
    covariance = random_covariance(6, seed=1)
    shift = normal(6, seed=2)
    assert gaussian_distance(shift, covariance, torch.zeros(6).double(), covariance) == pytest.approx(
        shift.square().sum().item()
    )


def test_diagonal_gaussians_differ_by_their_standard_deviations():
    std1, std2 = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 0.5, 3.0]).double()
    mean = torch.zeros(3).double()
    assert gaussian_distance(mean, std1.square().diag(), mean, std2.square().diag()) == pytest.approx(1.0 + 2.25)


@pytest.mark.parametrize("seed", range(5))
def test_gaussian_distance_agrees_with_a_general_matrix_root(seed: int):
    arguments = (
        normal(8, seed=seed),
        random_covariance(8, seed + 10),
        normal(8, seed=seed + 20),
        random_covariance(8, seed + 30),
    )
    assert gaussian_distance(*arguments) == pytest.approx(distance_by_sqrtm(*arguments), rel=1e-9)


def test_gaussian_distance_is_symmetric():
    first, second = (normal(5, seed=1), random_covariance(5, 2)), (normal(5, seed=3), random_covariance(5, 4))
    assert gaussian_distance(*first, *second) == pytest.approx(gaussian_distance(*second, *first), rel=1e-9)


def test_frechet_distance_fits_mean_and_covariance():
    real, gen = normal(50, 4), normal(70, 4, seed=1) * 2 + 1
    fitted = [torch.from_numpy(part(x.numpy())) for x in (real, gen) for part in (lambda a: a.mean(0), lambda a: np.cov(a.T))]
    assert frechet_distance(real.float(), gen.float()) == pytest.approx(distance_by_sqrtm(*fitted), rel=1e-5)


def test_frechet_distance_survives_fewer_samples_than_features():
    few = normal(5, 48)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(normal(1, 3), normal(5, 3))


def test_a_set_covers_itself():
    points = normal(60, 3)
    assert precision_recall(points, points) == (1.0, 1.0)


def test_sets_far_apart_do_not_meet():
    assert precision_recall(normal(20, 3), normal(20, 3) + 100) == (0.0, 0.0)


def test_a_missing_mode_costs_recall_only():
    near, far = normal(30, 3), normal(30, 3, seed=1) + 100
    precision, recall = precision_recall(torch.cat([near, far]), near)
    assert precision == 1.0 and recall == 0.5


def test_an_invented_mode_costs_precision_only():
    near, far = normal(30, 3), normal(30, 3, seed=1) + 100
    precision, recall = precision_recall(near, torch.cat([near, far]))
    assert precision == 0.5 and recall == 1.0


def share_inside(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Point by point, with a sorted list for each radius."""
    radii = [
        sorted((a - b).norm().item() for j, b in enumerate(manifold) if i != j)[neighbours - 1] for i, a in enumerate(manifold)
    ]
    inside = [any((p - m).norm().item() <= r for m, r in zip(manifold, radii, strict=True)) for p in points]
    return sum(inside) / len(inside)


def test_precision_and_recall_agree_with_counting_point_by_point():
    real, gen = normal(25, 2), normal(35, 2, seed=1) + 1.5
    expected = share_inside(gen, real, 3), share_inside(real, gen, 3)
    assert precision_recall(real, gen) == pytest.approx(expected)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1


def test_too_few_samples_for_the_neighbours_are_refused():
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(normal(3, 2), normal(9, 2))


def test_coverage_averages_over_chunks_of_equal_size():
    real, gen = normal(20, 2), normal(45, 2, seed=1) + 0.5
    chunks = [precision_recall(real, gen[:20]), precision_recall(real, gen[20:40])]  # five are left over
    precision, recall = coverage(real, gen)
    assert precision == pytest.approx((chunks[0][0] + chunks[1][0]) / 2)
    assert recall == pytest.approx((chunks[0][1] + chunks[1][1]) / 2)


def test_the_kernel_distance_is_the_mean_over_pairs_counted_one_by_one():
    real, gen = normal(6, 3), normal(5, 3, seed=1) + 1
    unscaled = kernel_distance(7 * real, 7 * gen)
    scale = real.square().mean().sqrt()
    real, gen = real / scale, gen / scale

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    own = [
        np.mean([kernel(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j]) for points in (real, gen)
    ]
    across = np.mean([kernel(x, y) for x in real for y in gen])
    assert kernel_distance(real, gen) == pytest.approx(1000 * (sum(own) - 2 * across))
    assert unscaled == pytest.approx(kernel_distance(real, gen))  # whatever the features' scale


def test_the_kernel_distance_of_two_halves_of_one_set_is_about_zero():
    points = normal(2000, 4)
    assert abs(kernel_distance(points[:1000], points[1000:])) < 0.05 * kernel_distance(points[:1000], points[1000:] + 0.5)


def test_the_nearest_distance_is_that_of_the_nearest():
    train = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    assert nearest_distance(torch.tensor([[3.0, 0.0], [10.0, 1.0]]), train) == pytest.approx(2.0)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.4, 0.6), (1.0, 0.95, 1.0)])
def test_only_sets_that_differ_are_told_apart(shift: float, low: float, high: float):
    real, gen = normal(200, 1, 8, 8).float(), normal(200, 1, 8, 8, seed=1).float()
    found = detectability(real, gen + shift, steps=60)
    assert low <= found <= high
    assert found == detectability(real, gen + shift, steps=60)


def test_a_ranking_is_judged_wherever_its_scores_lie():
    real, gen = torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    for offset in (-100.0, 0.0, 100.0):
        assert higher_half(real + offset, gen + offset) == 1.0
        assert higher_half(gen + offset, real + offset) == 0.0
    assert higher_half(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])) == 0.5
