"""README.md's first table is what the published results say."""

from __future__ import annotations

from benchmarks import DOCUMENTS, gains, miniature, small_sd


def test_the_table_is_what_the_json_says() -> None:
    assert gains.published() in (DOCUMENTS.parents[1] / "README.md").read_text(encoding="utf-8")


def test_changes_are_paired_and_differences_have_no_sign_at_zero() -> None:
    assert gains.difference([0.501, 0.499], [0.5, 0.499]) == "0.00"
    pairs = {"fd": ([3.0, 1.0], [4.0, 2.0]), "well_formed": ([0.5], [0.25]), "recall": ([0.5], [0.75])}
    assert gains.row(lambda point, figure: pairs[figure], [5]) == ["-38 %", "+0.25", "-0.25"]


def test_both_beds_are_read_by_run_and_point() -> None:
    scores = {"3 @ 10": {"fd": 1.0}}
    runs = {f"{small_sd.PLAIN}, lr 1": [{"scores": {"3 @ 10": {"fd": 2.0}}}], small_sd.ADT.name: [{"scores": scores}]}
    assert gains.of_the_small_sd(runs)("3 @ 10", "fd") == ([1.0], [2.0])
    found = {"heldout": {"ADT": [], miniature.PLAIN: []}}
    assert gains.of_the_miniature(found)(5, "fd") == ([], [])
