"""Digits, splits and the exact decoder."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from adt_plugin.demo.data import Digits, batches, decode, encode, load_splits
from benchmarks.beds.pictures import warp


def seeded_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_splits_are_disjoint_and_complete():
    splits = load_splits()
    parts = [splits.train, splits.backbone, splits.metric, splits.validation, splits.heldout]
    assert [len(part) for part in parts] == [2500, 500, 700, 500, 800]
    together = torch.cat([part.images.flatten(1) for part in parts])
    assert len(together.unique(dim=0)) == 5000  # no digit occurs twice, so none is in two splits


def test_splits_are_the_same_every_time():
    assert torch.equal(load_splits().heldout.images, load_splits().heldout.images)


def test_images_are_in_range_and_every_class_is_in_every_split():
    for part in (load_splits().train, load_splits().validation, load_splits().heldout):
        assert part.images.shape[1:] == (1, 28, 28)
        assert part.images.min() >= -1 and part.images.max() <= 1
        assert part.labels.unique().tolist() == list(range(10))


def test_decode_is_the_inverse_of_encode():
    images = load_splits().train.images[:5]
    latents = encode(images)
    assert latents.shape == (5, 4, 14, 14)
    assert torch.equal(decode(latents), images)


def test_a_warp_of_nothing_changes_nothing():
    images = load_splits().train.images[:5]
    torch.testing.assert_close(warp(images, seeded_generator(), angle=0, stretch=0), images)


def test_an_epoch_shows_every_image_once():
    digits = Digits(torch.arange(12.0).view(12, 1, 1, 1), torch.arange(12))
    epoch = list(islice(batches(digits, 4, seeded_generator()), 3))
    assert sorted(torch.cat([labels for _, labels in epoch]).tolist()) == list(range(12))
    assert all(torch.equal(images.flatten().long(), labels) for images, labels in epoch)


def test_batches_follow_the_generator():
    digits = load_splits().train
    first, second = (next(batches(digits, 8, seeded_generator())) for _ in range(2))
    assert torch.equal(first[0], second[0])


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="larger than the data set"):
        next(batches(Digits(torch.zeros(3, 1, 28, 28), torch.zeros(3)), 4, seeded_generator()))
