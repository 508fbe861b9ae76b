"""Models of true size, and what was counted of them."""

from __future__ import annotations

import pytest
import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import COUNTED, JUDGE, run_ratio
from adt_plugin.cost.count import counted_parts
from adt_plugin.cost.models import MODELS
from adt_plugin.cost.stacks import Stack, StackSize
from adt_plugin.cost.workbench import Workload
from adt_plugin.host.families import FAMILIES

BILLIONS = {"flux": 11.9, "chroma": 8.9, "lumina": 2.6, "anima": 2.0, "hunyuan": 17.0}
"""Weights that are published, embedders and refiners included, which stacks do without."""


@pytest.mark.parametrize("name", BILLIONS)
def test_a_model_has_about_the_weights_that_are_published(name: str) -> None:
    with torch.device("meta"):
        network = MODELS[name].build()
    weights = sum(parameter.numel() for parameter in network.parameters()) / 1e9
    assert 0.89 * BILLIONS[name] <= weights <= 1.01 * BILLIONS[name]


@pytest.mark.parametrize(
    "size",
    [
        StackSize(16, 4, 2, 2, hidden=32, latent_channels=4, patch=2, context=5),
        StackSize(16, 4, 1, 1, hidden=32, latent_channels=4, patch=1, context=5, modulation=None),
        StackSize(16, 4, 0, 2, hidden=32, latent_channels=4, patch=2, context=5, kv_heads=2, gated=True, modulation=8),
        StackSize(16, 4, 0, 2, hidden=32, latent_channels=4, patch=2, context=5, cross=12, modulation=8),
    ],
    ids=["two streams, then one", "without modulation", "grouped queries, gated", "cross-attention"],
)
def test_a_stack_is_a_denoiser_whose_every_weight_is_used(size: StackSize) -> None:
    network = Stack(size)
    latents, text = torch.randn(2, 4, 8, 6), torch.randn(2, 5, size.cross or 16)
    plain = network(latents, text)
    assert plain.shape == latents.shape
    network.enable_gradient_checkpointing()
    again = network(latents, text)
    torch.testing.assert_close(again, plain)
    again.sum().backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert all(".streams.0." in name and "double" in name for name in unused)  # of the text, which nothing reads at the end


def test_everything_that_is_trained_is_counted_and_forecast() -> None:
    assert set(COUNTED) == set(MODELS) - {"tiny"}
    assert {family.counted(None) for family in FAMILIES} <= set(COUNTED)
    assert all((MODELS[name].title, MODELS[name].resolution) == (c.title, c.resolution) for name, c in COUNTED.items())


def test_a_forecast_follows_crop_checkpointing_and_what_is_trained() -> None:
    counted, config = COUNTED["sdxl"], ADTConfig(begin=0.0, every=1)

    def ratio(trains_all: bool = False, checkpointing: bool = True, **options: object) -> float:
        changed = ADTConfig(**{"begin": 0.0, "every": 1} | options)  # type: ignore[arg-type]
        return run_ratio(counted.parts(changed, trains_all, checkpointing), changed, 2000)

    assert ratio(decode_crop=0) > ratio() > ratio(trains_all=True)
    assert counted.parts(config, False, False).step == pytest.approx(counted.step - counted.forward)
    assert counted.parts(ADTConfig(decode_crop=512), False, True).decode_real == pytest.approx(4 * counted.decode)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_the_figures_are_those_that_are_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true backbone, not the tiny one of these tests
    parts, counted = counted_parts(Workload(name), ADTConfig()), COUNTED[name]
    found = [value / 1e12 for value in (parts.forward, parts.step, parts.decode_real, parts.decode_generated, parts.judge)]
    assert found == pytest.approx([counted.forward, counted.step, counted.decode, counted.decode_backward, JUDGE], rel=2e-3)
