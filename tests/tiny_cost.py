"""Fixtures of the cost tests: a model family small enough to count and to measure in a moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adt_plugin.core.config import ADTConfig
from adt_plugin.cost import models, tiny
from adt_plugin.cost.workbench import Workload


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`tiny` among the models, and a DINOv2 that is no larger."""
    monkeypatch.setitem(models.MODELS, tiny.NAME, tiny.TINY)
    monkeypatch.setitem(models.BACKBONES, "base", (32, 4, 2))
    monkeypatch.setattr(models, "BACKBONE_PIXELS", 28)
    yield


@pytest.fixture
def workload() -> Workload:
    """A LoRA of the tiny model."""
    return Workload("tiny", rank=4, dtype="fp32")


@pytest.fixture
def config() -> ADTConfig:
    """Short turns with narrow heads, no augmentation: its random draws are no part of what is counted."""
    return ADTConfig(steps=4, grad_steps=2, decode_crop=0, memory="low", disc_width=16, augment="none", decode_dtype="fp32")
