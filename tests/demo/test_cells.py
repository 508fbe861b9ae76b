"""A cell is read back as it was."""

from __future__ import annotations

from adt_plugin.demo.cells import Cell
from adt_plugin.demo.metrics import Scores

CELL = Cell(
    "ADT",
    1,
    12.5,
    300,
    1,
    {"ddim": {5: Scores(1.5, 0.9, 3.0, 0.8, 0.7, 0.6, 1.0), 10: Scores(1.25, 0.9, 2.5, 0.8, 0.7, 0.6, 1.0, 0.55)}},
)


def test_a_cell_survives_json():
    assert Cell.from_json(CELL.as_json()) == CELL
