"""Pretraining and its cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adt_plugin.demo import base as base_module
from adt_plugin.demo.base import Recipe, decay, default_cache, load_base
from adt_plugin.demo.data import load_splits

SHORT = Recipe(degraded_steps=2, clean_steps=2, classifier_steps=2, backbone_steps=2)


def load(cache: Path, recipe: Recipe = SHORT) -> tuple[base_module.Base, float]:
    """The base, and the work that was reported."""
    work: list[float] = []
    base = load_base(load_splits().train, recipe, cache, work.append)
    return base, sum(work)


def weights(base: base_module.Base) -> torch.Tensor:
    return torch.cat([p.flatten() for net in (base.unet, base.classifier, base.backbone) for p in net.parameters()])


def test_the_second_time_everything_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, _ = load(tmp_path)
    monkeypatch.setattr(base_module, "_train", lambda *args: pytest.fail("trained again"))
    second, _ = load(tmp_path)
    assert torch.equal(weights(first), weights(second))


def test_training_is_reproducible_and_leaves_the_global_generator_alone(tmp_path: Path):
    before = torch.get_rng_state()
    first, second = load(tmp_path / "a")[0], load(tmp_path / "b")[0]
    assert torch.equal(weights(first), weights(second))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_work_reported_is_the_work_announced_trained_or_cached(tmp_path: Path):
    assert load(tmp_path)[1] == pytest.approx(SHORT.work)
    assert load(tmp_path)[1] == pytest.approx(SHORT.work)


def test_another_recipe_is_another_base(tmp_path: Path):
    other = replace(SHORT, seed=1)
    assert other.key != SHORT.key
    assert not torch.equal(weights(load(tmp_path)[0]), weights(load(tmp_path, other)[0]))


def test_the_networks_are_frozen_and_in_evaluation_mode(tmp_path: Path):
    base, _ = load(tmp_path)
    for network in (base.unet, base.classifier, base.backbone):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_broken_file_is_made_again(tmp_path: Path, content: bytes):
    first, _ = load(tmp_path)
    paths = list(tmp_path.glob("*.safetensors"))
    assert len(paths) >= 3
    for path in paths:
        path.write_bytes(content)
    assert torch.equal(weights(load(tmp_path)[0]), weights(first))


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ADT_DEMO_CACHE", str(tmp_path))
    assert default_cache() == tmp_path


def test_the_learning_rate_is_constant_then_falls_to_zero():
    assert [decay(p) for p in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]
