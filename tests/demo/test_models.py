"""Shapes of the networks, and what their outputs depend on."""

from __future__ import annotations

import torch

from adt_plugin.demo.models import Classifier, RotationNet, UNet, seeded, sinusoids


def test_seeded_layers_are_reproducible_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    with seeded(3):
        first = UNet()
    with seeded(3):
        second = UNet()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_denoiser_sees_its_timestep_and_its_class():
    with seeded(0):
        unet = UNet()
    x, t, y = torch.ones(2, 4, 14, 14), torch.tensor([5, 5]), torch.tensor([1, 1])
    assert unet(x, t, y).shape == x.shape
    assert not torch.equal(unet(x, t, y), unet(x, t + 500, y))
    assert not torch.equal(unet(x, t, y), unet(x, t, y + 1))


def test_the_denoiser_is_of_the_size_that_the_documentation_gives():
    assert round(sum(p.numel() for p in UNet().parameters()), -3) == 575_000


def test_sinusoids_start_at_cosine_one_and_tell_timesteps_apart():
    embedded = sinusoids(torch.arange(1000))
    assert embedded.shape == (1000, 32)
    assert torch.equal(embedded[0], torch.tensor([0.0] * 16 + [1.0] * 16))
    assert torch.cdist(embedded, embedded).fill_diagonal_(9).min() > 1e-3


def test_the_backbone_gives_the_maps_that_it_announces():
    backbone = RotationNet()
    maps = backbone(torch.zeros(2, 1, 28, 28))
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert [m.shape[-1] for m in maps] == [14, 7, 4]
    assert backbone.rotation_logits(torch.zeros(2, 1, 28, 28)).shape == (2, 4)


def test_the_classifier_has_as_many_features_as_it_announces():
    classifier = Classifier()
    features = classifier.features(torch.zeros(2, 1, 28, 28))
    assert features.shape == (2, classifier.features_dim)
    assert features.min() >= 0
