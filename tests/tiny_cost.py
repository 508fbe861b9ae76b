"""Fixtures of the cost tests: a model family small enough to count and to measure in a moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.cost import models
from adt_plugin.cost.models import TrueSize
from adt_plugin.cost.workbench import Workload


def tiny_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def bound(network: nn.Module, batch: int) -> Denoiser:
    weight = next(network.parameters())
    prompt = torch.randn(batch, 7, 16, dtype=weight.dtype)
    return lambda x, t: network(x, t, prompt).sample


TINY = TrueSize("Tiny", 64, tiny_unet, bound, vae_channels=(32, 32, 32, 32))
"""Eight pixels to a latent, as the others have."""


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`tiny` among the models, and a DINOv2 that is no larger."""
    monkeypatch.setitem(models.MODELS, "tiny", TINY)
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
