"""What runs on the day with a card, on the make-believe one: the parts of `gpu-check`, and the experiment of `tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.cost import check, tiny
from adt_plugin.cost.check_cli import TINY
from gpu.effect import SMALLEST, compare


def test_every_part_of_gpu_check_finds_the_card_good(card: torch.device) -> None:
    config = ADTConfig(**tiny.OPTIONS, steps=4)
    found = list(check.findings(check.Subject(card, TINY, config, TINY, steps=2000, repeats=1)))
    assert [finding.part for finding in found] == list(check.PARTS)
    assert all(finding.good for finding in found), [finding for finding in found if not finding.good]


def test_the_experiment_trains_and_scores(card: torch.device, tmp_path: Path) -> None:
    found = compare(SMALLEST, str(card), 0, tmp_path)
    assert found["adt"] != found["plain"] != found["base"]
    assert compare(SMALLEST, str(card), 0, tmp_path)["adt"] == found["adt"]  # from the saved base
