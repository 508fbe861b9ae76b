"""What runs on the day with a card, on the make-believe one: the parts of `gpu-check`, and the experiment of `tests/gpu`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.cost import check, tiny
from adt_plugin.cost.check_cli import TINY
from adt_plugin.demo.data import Digits, Splits, load_splits
from gpu import effect, parts
from gpu.setting import Setting


@pytest.mark.slow
def test_every_part_of_gpu_check_finds_the_card_good(card: torch.device) -> None:
    config = ADTConfig(**tiny.OPTIONS, steps=4)
    found = list(check.findings(check.Subject(card, TINY, config, TINY, steps=2000, repeats=1)))
    assert [finding.part for finding in found] == list(check.PARTS)
    assert all(finding.good for finding in found), [finding for finding in found if not finding.good]


@pytest.mark.slow
def test_what_the_workbench_measures_runs_on_the_card(card: torch.device, tmp_path: Path) -> None:
    """The whole unroll in one graph, too, with which turns are compared."""
    found = parts.measured(Setting(tmp_path, str(card), miniature=True), "tiny")
    assert min(found[key] for key in ("step", "turn_low", "turn_fast", "one_graph", "step_gib", "one_graph_gib")) > 0


def few() -> Splits:
    """A handful of digits of every split."""
    splits = load_splits()
    parts = {part.name: getattr(splits, part.name) for part in fields(splits)}
    return Splits(**{name: Digits(part.images[:20], part.labels[:20]) for name, part in parts.items()})


@pytest.mark.slow
def test_the_experiment_trains_and_scores(card: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effect, "load_splits", few)
    found = effect.compare(effect.SMALLEST, str(card), 0, tmp_path)
    assert found["adt"] != found["plain"] != found["base"]
    assert found["base"]["fd_5"] > 0 and (tmp_path / "base-0.pt").exists()
