"""The networks that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adt_plugin.demo import weights as weights_module
from adt_plugin.demo.base import BASES, Base, load_base
from adt_plugin.demo.data import load_splits
from adt_plugin.demo.models import Judge, RotationNet
from adt_plugin.demo.optimizing import decay, follow
from adt_plugin.demo.weights import WEIGHTS, digests, load_weights, write_weights

MEGABYTES = 4


def networks(base: Base) -> tuple[torch.nn.Module, ...]:
    return base.unet, base.classifier, base.judge, base.backbone


@pytest.mark.parametrize("number", range(BASES))
def test_every_base_ships_frozen_and_in_evaluation_mode(number: int):
    for network in networks(load_base(number)):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in network.parameters())


def test_the_files_are_small_and_all_of_them_have_a_digest():
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert {path.stem for path in files} == set(digests())
    assert sum(path.stat().st_size for path in files) < MEGABYTES * 2**20


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights_module, "WEIGHTS", tmp_path)
    monkeypatch.setattr(weights_module, "DIGESTS", tmp_path / "sha256.json")
    write_weights("judge", Judge())
    load_weights("judge", Judge())
    path = tmp_path / "judge.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"judge\.safetensors is damaged: install adt_plugin again"):
        load_weights("judge", Judge())


def test_the_classifiers_know_digits_that_they_have_not_seen():
    base, heldout = load_base(), load_splits().heldout
    with torch.no_grad():
        for network in (base.classifier, base.judge):
            assert (network(heldout.images).argmax(1) == heldout.labels).float().mean() > 0.97


def test_the_backbone_was_never_told_a_class_and_knows_which_way_is_up():
    backbone: RotationNet = load_base().backbone
    images = load_splits().heldout.images
    with torch.no_grad():
        assert (backbone.rotation_logits(images).argmax(1) == 0).float().mean() > 0.85
    assert backbone.head.out_features == 4


@pytest.mark.parametrize("number", range(BASES))
def test_every_base_is_at_its_plateau(number: int):
    """Over the last third of the training, no distance on validation changed by more than a tenth."""
    log = [json.loads(line) for line in (WEIGHTS / f"unet{number}.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [entry for entry in log if entry["step"] >= 2 / 3 * log[-1]["step"]]
    for steps in (5, 10, 20):
        distances = [entry[f"fd@{steps}"] for entry in last[len(last) // 3 :]]
        assert max(distances) < 1.1 * min(distances)


def test_the_learning_rate_is_constant_then_falls_to_zero():
    assert [decay(p) for p in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]


def test_an_average_moves_by_its_share():
    average, network = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.75 * average.weight.detach() + 0.25 * network.weight.detach()
    follow(average, network, 0.75)
    torch.testing.assert_close(average.weight.detach(), expected)
