"""A run of the tiny model."""

from __future__ import annotations

import pytest

from adt_plugin.core.config import ADTConfig
from adt_plugin.cost.workbench import Workload
from tiny_cost import tiny_models  # noqa: F401


@pytest.fixture
def workload() -> Workload:
    """A LoRA of the tiny model."""
    return Workload("tiny", rank=4, dtype="fp32")


@pytest.fixture
def config() -> ADTConfig:
    """Short turns with narrow heads, no augmentation: its random draws are no part of what is counted."""
    return ADTConfig(steps=4, grad_steps=2, decode_crop=0, memory="low", disc_width=16, augment="none", decode_dtype="fp32")
