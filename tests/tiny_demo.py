"""Fixtures of the miniature: its shipped networks, and a study that scores on forty samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adt_plugin.demo.study import Setting, Study, open_study
from adt_plugin.demo.variants import Variant

TINY = Setting(split="validation", samples=40, sampler_steps=(5, 10, 20), detect=(), threads=1)


@pytest.fixture(autouse=True)
def threads_restored():
    """The commands set PyTorch's number of threads for their process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_setting() -> Setting:
    """Forty samples."""
    return TINY


@pytest.fixture(scope="session")
def tiny_study() -> Study:
    """A study over the shipped networks."""
    return open_study(TINY)


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
