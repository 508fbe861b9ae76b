"""The figures against torch-fidelity, and what resamples by counts mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from adt_plugin.compare import metrics


def features(count: int, shift: float = 0.0, seed: int = 0, size: int = 12) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def ones(*sets: Tensor) -> list[Tensor]:
    return [torch.ones(1, len(features), dtype=torch.float64) for features in sets]


def test_kid_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    gen, real = features(40, 0.3), features(40, seed=1)
    theirs = kid_features_to_metric(gen, real, kid_subsets=1, kid_subset_size=40, verbose=False)
    ours = metrics.kernel_distance(gen, real, *ones(gen, real), torch.arange(40))
    assert float(ours) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


@pytest.mark.parametrize("count", [8, 60], ids=["fewer images than dimensions", "more"])
def test_the_frechet_distance_is_torch_fidelitys(count: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    gen, real = features(count, 0.5), features(50, seed=1)
    statistics = [fid_features_to_statistics(side) for side in (gen, real)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert float(metrics.frechet_distance(gen, real, *ones(gen, real))) == pytest.approx(float(theirs), rel=1e-4)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    gen, real = features(30, 0.7, size=4), features(40, seed=1, size=4)
    theirs = prc_features_to_metric(gen, real, prc_neighborhood=3, prc_batch_size=100, verbose=False)
    assert float(metrics.inside(gen, real).mean()) == pytest.approx(theirs["precision"])
    assert float(metrics.inside(real, gen).mean()) == pytest.approx(theirs["recall"])
    assert 0 < theirs["precision"] < 1 and 0 < theirs["recall"] < 1


def test_counts_of_the_frechet_distance_are_repeats() -> None:
    gen, real = features(9), features(7, seed=1)
    counts = torch.tensor([[2.0, 0, 1, 1, 3, 0, 1, 1, 0]], dtype=torch.float64)
    repeated = gen.repeat_interleave(counts[0].long(), dim=0)
    weighted = metrics.frechet_distance(gen, real, counts, *ones(real))
    assert torch.allclose(weighted, metrics.frechet_distance(repeated, real, *ones(repeated, real)))


def test_a_repeated_image_is_not_its_own_neighbour_in_kid() -> None:
    """Without the image that is repeated the pairs are those of the other two, whatever its count."""
    gen, real = features(3), features(5, seed=1)
    counts = torch.tensor([[1.0, 1, 0], [5, 5, 0]], dtype=torch.float64)
    once, often = metrics.kernel_distance(gen, real, counts, torch.ones(2, 5, dtype=torch.float64), torch.arange(3))
    assert torch.isclose(once, often)


def test_images_of_one_unit_are_no_pair() -> None:
    gen, real = features(4), features(5, seed=1)
    together = metrics.kernel_distance(gen, real, *ones(gen, real), torch.tensor([0, 0, 1, 1]))
    alone = metrics.kernel_distance(gen, real, *ones(gen, real), torch.arange(4))
    assert not torch.isclose(together, alone)
    assert metrics.kernel_distance(gen, real, *ones(gen, real), torch.zeros(4)).isnan()


def test_kid_does_not_depend_on_the_number_of_images() -> None:
    values = [
        float(metrics.kernel_distance(gen, real, *ones(gen, real), torch.arange(len(gen))))
        for seed in range(300)
        for gen, real in [(features(6, seed=seed), features(6, seed=seed + 1000))]
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def test_diversity_is_of_one_prompt_with_different_seeds() -> None:
    same = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1])
    assert float(metrics.diversity(same, *ones(same), group, torch.arange(4))) == 0
    turned = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]], dtype=torch.float64)
    assert float(metrics.diversity(turned, *ones(turned), group, torch.arange(4))) == 1
    assert metrics.diversity(turned, *ones(turned), torch.arange(4), torch.arange(4)).isnan()


def test_the_nearest_image_is_found_and_never_the_image_itself() -> None:
    points = torch.tensor([[1.0, 0], [1, 0.1], [0, 1]], dtype=torch.float64)
    distance, which = metrics.nearest(points[:1], points[1:])
    assert which.tolist() == [0] and 0 < float(distance) < 0.01
    each = metrics.nearest_of_each_other(points)
    assert float(each[0]) == pytest.approx(float(each[1])) and float(each[2]) > 0.5


def test_a_mean_leaves_out_what_is_not_there() -> None:
    values = torch.tensor([1.0, torch.nan, 3.0], dtype=torch.float64)
    counts = torch.tensor([[1.0, 1, 1], [0, 5, 2], [0, 1, 0]], dtype=torch.float64)
    found = metrics.weighted_mean(values, counts)
    assert found[:2].tolist() == [2.0, 3.0] and found[2].isnan()
