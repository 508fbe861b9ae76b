"""Counting pieces of ink, and the tables of the bench that does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adt_plugin.demo.data import load_splits
from benchmarks import DOCUMENTS, pieces
from benchmarks.beds.small_sd import rendered
from benchmarks.floor import TRAINING
from benchmarks.host_training import STYLE
from benchmarks.small_sd import ADT, QUARTER, Bench
from benchmarks.store import CellStore


def paper(*strokes: tuple[slice, slice], colour: float = -0.5) -> Tensor:
    """Light paper with rectangles of ink."""
    image = torch.full((3, 64, 64), 0.9)
    for rows, columns in strokes:
        image[0, rows, columns] = colour  # one channel is enough
    return image


@pytest.mark.parametrize(
    ("strokes", "count"),
    [
        ([], 0),
        ([(slice(10, 40), slice(20, 24))], 1),
        ([(slice(10, 40), slice(20, 24)), (slice(50, 54), slice(50, 54))], 2),
        ([(slice(10, 40), slice(20, 24)), (slice(40, 44), slice(24, 28))], 1),  # they touch at a corner
        ([(slice(10, 40), slice(20, 24)), (slice(50, 51), slice(50, 53))], 1),  # three pixels are no piece
    ],
)
def test_pieces_are_what_hangs_together(strokes: list[tuple[slice, slice]], count: int) -> None:
    assert pieces.pieces(paper(*strokes)) == count


def test_faint_traces_are_no_ink() -> None:
    assert pieces.pieces(paper((slice(10, 40), slice(20, 24)), colour=0.7)) == 0


def test_nearly_all_real_digits_are_in_one_piece() -> None:
    images, _ = rendered(load_splits().validation, STYLE, 1, seed=107)
    assert pieces.share_in_one_piece(images[:200]) > 0.95


def test_runs_are_counted_once_and_tables_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, int]] = []

    def counted(bench: Bench, recipe: pieces.Recipe | None, seed: int) -> dict[str, float]:
        begun.append((recipe.name if recipe else "plateau", seed))
        return {pieces.point_name(*point): 0.9 if recipe == ADT else 0.8 for point in pieces.POINTS}

    monkeypatch.setattr(pieces, "counted", counted)
    monkeypatch.setattr(pieces, "of_training_images", lambda: {pieces.point_name(*point): 1.0 for point in pieces.POINTS})
    monkeypatch.setattr(Bench, "finalists", lambda self: [ADT])
    monkeypatch.setattr(Bench, "at_its_best", lambda self: QUARTER)
    bench, store = Bench(tmp_path, CellStore(tmp_path / "small_sd.json"), tmp_path), CellStore(tmp_path / "pieces.json")
    for _ in range(2):
        pieces.run(bench, store)
    assert len(begun) == 6 * 3 + 2 * (1 + len(pieces.OTHERS))
    results = store.results()[store.group]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in pieces.table(results).splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        [TRAINING, "1"],
        ["plateau", "6"],
        [ADT.name, "6"],
        [QUARTER.name, "6"],
        [f"{ADT.name} against plateau", ""],
        [f"{QUARTER.name} against plateau", ""],
    ]
    assert rows[2][2] == "0.900 (0.900 to 0.900)" and rows[4][2] == "+0.100 (+0.100 to +0.100), p = 0.031"
    assert "0.900 / 0.900" in pieces.others_table(results)


def test_the_tables_are_what_their_json_says() -> None:
    results = pieces.published()
    page = (DOCUMENTS.parent / "benchmarks.md").read_text(encoding="utf-8")
    assert pieces.table(results) in page and pieces.others_table(results) in page
