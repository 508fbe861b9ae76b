"""README.md's first table is what the published results say."""

from __future__ import annotations

import json
from pathlib import Path

from adt_plugin.demo.diffusion import LEADING, TRAILING
from adt_plugin.demo.variants import BASE
from benchmarks import DOCUMENTS, gains, miniature, small_sd
from benchmarks.floor import TRAINING


def test_the_table_is_what_the_json_says() -> None:
    assert gains.table(gains.published()) in (DOCUMENTS.parents[1] / "README.md").read_text(encoding="utf-8")


def test_changes_are_paired_and_differences_have_no_sign_at_zero() -> None:
    assert gains.difference([0.501, 0.499], [0.5, 0.499]) == "0.00"
    pairs = {"fd": ([3.0, 1.0], [4.0, 2.0]), "well_formed": ([0.5], [0.25]), "recall": ([0.5], [0.75])}

    def values(run: str, point: int, figure: str) -> list[float]:
        return pairs[figure][run == "plain"]

    assert gains.row(values, "ADT", "plain", [5]) == ["-38 %", "+0.25", "-0.25"]


def figures(fd: float) -> dict[str, float]:
    return dict.fromkeys(gains.FIGURES, 0.5) | {"fd": fd}


def test_every_bed_is_read_by_run_and_point(tmp_path: Path) -> None:
    """ADT has three quarters, a half and a quarter of plain training's distance, by grid and on the other bed."""
    others = dict.fromkeys((miniature.PLAIN, BASE.name), {LEADING: 4.0, TRAILING: 4.0})
    distances = {"ADT": {LEADING: 3.0, TRAILING: 2.0}} | others
    found = json.loads((DOCUMENTS / "miniature.json").read_text(encoding="utf-8"))
    for run, by_grid in distances.items():
        for cell in (cell for noises in found["heldout"][run] for cell in noises):
            cell["scores"] = {
                grid: {steps: scores | {"fd": fd} for steps, scores in cell["scores"][LEADING].items()}
                for grid, fd in by_grid.items()
            }
    found[miniature.HELDOUT[TRAILING]] = found["heldout"]
    small = {f"{small_sd.PLAIN}, lr 1": figures(4), small_sd.ADT.name: figures(1), small_sd.BEFORE: figures(2)}
    runs = {run: [{"scores": dict.fromkeys(gains.GUIDED.values(), scores)}] for run, scores in small.items()}
    shares = {
        run: [dict.fromkeys(gains.GUIDED.values(), share)]
        for run, share in zip([*small, TRAINING], (0.75, 0.875, 0.8125, 1.0), strict=True)
    }
    beds = gains.Beds([found, found], runs, figures(0.5), shares)
    assert [beds.apart(run, "3 @ 10") for run in shares] == [25.0, 12.5, 18.75, 0.0]
    gains.draw(beds, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").read_bytes().startswith(b"\x89PNG")
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in gains.table(beds).splitlines()[2:]]
    assert [row[2] for row in rows] == ["-75 / -75 / -75 %", "-50 / -50 / -50 %", "-25 / -25 / -25 %", "-50 / -50 / -50 %"]
    assert rows[2][0] == f"the miniature, leading grid, {2 * len(found['heldout']['ADT'])} seeds"
