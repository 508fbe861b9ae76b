"""The bench of the heads: what counts as told apart, when they are looked at, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adt_plugin.demo.data import load_splits
from adt_plugin.demo.finetune import build_turn
from adt_plugin.demo.study import Study
from adt_plugin.demo.variants import ADT, changed, hurried
from benchmarks import DOCUMENTS, heads
from benchmarks.store import only_group


def test_a_pair_is_told_apart_where_two_views_of_the_real_image_score_higher(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = build_turn(tiny_study.base, changed(), seed=0)
    digits = load_splits().heldout
    few = type(digits)(digits.images[:4], digits.labels[:4])
    scores = torch.tensor([1.0, 1.0, 1.0, 3.0]), torch.tensor([0.0, 2.0, 1.0, 2.0])
    monkeypatch.setattr(turn.discriminator, "scores", lambda features: scores)
    assert heads.accuracy(turn, tiny_study.base.unet, few) == dict.fromkeys("12345", 0.5)


def test_heads_are_looked_at_before_they_learn_after_the_warm_up_and_after_the_run(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[bool, int]] = []

    def accuracy(turn, unet, digits):
        seen.append((unet is tiny_study.base.unet, turn.turns))
        return dict.fromkeys("12345", len(seen) / 10)

    monkeypatch.setattr(heads, "accuracy", accuracy)
    monkeypatch.setattr(heads, "ADT", hurried(ADT))
    monkeypatch.setattr(heads, "STATISTICS", 1)
    found = heads.measured(tiny_study.base, tiny_study.train, load_splits().heldout, seed=0, steps=2)
    assert list(found) == [heads.BEFORE, heads.WARM, heads.AFTER, heads.AGAIN]
    assert seen == [(True, 9), (True, 3), (False, 4), (True, 4)]
    rows = heads.table({"a": found, "b": found}).splitlines()
    assert rows[2].split("|")[2].strip() == "10%" and len(rows) == 2 + 4


def test_the_table_is_what_its_json_says() -> None:
    assert heads.table(only_group(DOCUMENTS / "heads.json")) in (DOCUMENTS.parent / "method.md").read_text(encoding="utf-8")
