"""The make-believe device has to be there before the first backward pass of the process."""

from __future__ import annotations

import pytest
import torch

from accelerator.device import install

CARD = install()


@pytest.fixture
def card() -> torch.device:
    return CARD
