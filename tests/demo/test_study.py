"""A study learns from one split and is scored on another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adt_plugin.demo.data import load_splits
from adt_plugin.demo.study import Setting, open_study


@pytest.mark.parametrize("split", ["heldout", "validation"])
def test_figures_are_measured_against_the_split_that_the_setting_names(split: str, tiny_setting: Setting):
    study = open_study(replace(tiny_setting, split=split))
    splits = load_splits()
    assert torch.equal(study.evaluator.real.pixels, getattr(splits, split).images.flatten(1))
    assert torch.equal(study.train.images, splits.train.images)
    seen = {tuple(image.tolist()) for image in study.train.images.flatten(1)}
    assert not any(tuple(image.tolist()) in seen for image in study.evaluator.real.pixels)


def test_nothing_is_scored_on_what_was_learnt_from(tiny_setting: Setting):
    with pytest.raises(ValueError, match="heldout or the validation split, not on 'train'"):
        open_study(replace(tiny_setting, split="train"))
