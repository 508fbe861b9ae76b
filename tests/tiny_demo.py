"""Fixtures of the miniature: a base that is trained in a second, and a study over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adt_plugin.demo.base import Recipe
from adt_plugin.demo.study import Setting, Study, open_study
from adt_plugin.demo.variants import Variant

TINY = Setting(
    recipe=Recipe(degraded_steps=2, clean_steps=2, classifier_steps=5, backbone_steps=2),
    split="validation",
    samples=40,
    threads=1,
)


@pytest.fixture(autouse=True)
def threads_restored():
    """The commands set PyTorch's number of threads for their process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_setting() -> Setting:
    """Seconds of training, forty samples."""
    return TINY


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny base's networks are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_study(tiny_cache: Path) -> Study:
    """A study whose networks have hardly been trained."""
    return open_study(TINY, tiny_cache)


def stop_after(runs: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Press Ctrl-C in the run after so many; returns the names of the runs that were begun."""
    begun: list[str] = []
    score = Study.score

    def watched(self: Study, variant: Variant, *rest: Any):
        begun.append(variant.name)
        if len(begun) > runs:
            raise KeyboardInterrupt
        return score(self, variant, *rest)

    monkeypatch.setattr(Study, "score", watched)
    return begun
