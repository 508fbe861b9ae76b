"""One loaded tiny pipeline per family, and the settings of a very small comparison."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from adt_plugin.compare.families import identify
from adt_plugin.compare.models import load_pipeline
from adt_plugin.compare.settings import NEUTRAL, Candidate, Prompt, Sampling, Settings
from browser import find_browser
from tiny_compare import attention_layers, parts_of, write_network
from tinyhost.models import HostModel, TinyModel

Loaded = Callable[[str], Any]


@pytest.fixture(scope="session")
def loaded(tiny_model: TinyModel) -> Loaded:
    """The pipeline of a tiny model: `loaded("flux")`. Whoever changes its weights puts them back."""

    @cache
    def load(family: str) -> Any:
        model = tiny_model(family)
        return load_pipeline("--base", identify("--base", model.checkpoint), parts_of(model), torch.float32)

    return load


@pytest.fixture(scope="session")
def tiny_lora(tmp_path_factory: pytest.TempPathFactory, loaded: Loaded) -> Path:
    """A random LoRA of the tiny SD's attention."""
    return write_network(tmp_path_factory.mktemp("lora") / "lora.safetensors", attention_layers(loaded("sd").unet), scale=0.3)


@pytest.fixture
def small(tmp_path: Path, tiny_sd: HostModel, tiny_lora: Path, tiny_images: Path, tiny_dino: Path) -> Settings:
    """A comparison of the tiny SD with a LoRA: 2 prompts, 2 seeds, 2 steps; one neutral prompt."""
    return Settings(
        candidates=(Candidate("base", "base", tiny_sd.checkpoint), Candidate("plain", "lora", tiny_lora)),
        prompts=(Prompt("a red square"), Prompt("a green disc", "blurry"), Prompt("a dog", "", NEUTRAL)),
        samplings=(Sampling(2, 3.0),),
        seeds=(1, 2),
        size=(64, 64),
        sampler="ddim",
        reference=tiny_images,
        out=tmp_path / "out",
        backbone=str(tiny_dino),
        device="cpu",
        dtype="float32",
        batch_size=6,
    )


@pytest.fixture(scope="session")
def browser() -> str:
    """A chromium; skips where there is none."""
    found = find_browser()
    if found is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    return found
