"""The miniature's benchmark: it resumes, it chooses on validation, and the published page says what its JSON says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from adt_plugin.demo import evaluate
from adt_plugin.demo.base import BASES
from adt_plugin.demo.cells import Cell
from adt_plugin.demo.diffusion import GRIDS, LEADING
from adt_plugin.demo.study import Setting, Study
from adt_plugin.demo.variants import ADT, SHIPPED, Variant
from benchmarks import miniature
from benchmarks.ablations import ABLATIONS, FROZEN_TRIALS, PLAIN_TRIALS, without_average
from benchmarks.counting import mean_turns, plain_step, steps_for
from benchmarks.miniature import Bench, Plan, merit, name_of, options_read, paragraphs, what_is_read, write
from benchmarks.store import CellStore
from tiny_demo import stop_after

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


class Silent:
    """A bar that nobody sees."""

    def name(self, text: str) -> None: ...

    def advance(self, work: float) -> None: ...


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tiny_study: Study) -> Plan:
    """Two trials of plain training, one of each other kind, one noise, twenty samples of ten steps."""
    monkeypatch.setattr(miniature, "PLAIN_TRIALS", PLAIN_TRIALS[:2])
    monkeypatch.setattr(miniature, "FROZEN_TRIALS", FROZEN_TRIALS[:1])
    monkeypatch.setattr(miniature, "NOISES", (11,))
    monkeypatch.setattr(miniature, "STEPS", (10,))
    monkeypatch.setattr(miniature, "JUDGED", (10,))

    def study(setting: Setting) -> Study:
        return replace(tiny_study, setting=setting, evaluator=tiny_study.evaluator.shortened(20))

    monkeypatch.setattr(miniature, "open_study", study)
    monkeypatch.setattr(evaluate, "detectability", lambda real, gen: 0.5)  # of the training images; it takes seconds
    monkeypatch.setattr(miniature, "steps_for", lambda plan, units: 2)  # counting takes longer than training so little
    return Plan(units=20, seeds=1, samples=20, quick=True)


def test_a_half_finished_bench_is_resumed_and_nothing_is_measured_twice(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(4, patch)
        Bench(small, CellStore(tmp_path / "cells.json"), Silent()).run()
    begun = stop_after(1000, monkeypatch)
    results = Bench(small, CellStore(tmp_path / "cells.json"), Silent()).run()
    # trials: 2 plain + 1 without average, 1 frozen + 1; held-out, on each grid: the base, then four finalists
    assert len(begun) == 3 + 2 + 2 * (1 + 4) - 4
    assert miniature.count_runs(small) == 3 + 2 + 2 * (1 + 4)
    assert miniature.count_runs(replace(small, seeds=5)) == 3 + 2 + 2 * (1 + 4 * 5)
    again = Bench(small, CellStore(tmp_path / "cells.json"), Silent()).run()
    assert len(begun) == 11 and again == results
    write(results, tmp_path)
    page = (tmp_path / "miniature.md").read_text(encoding="utf-8")
    # a table of one number of steps for each grid, head and 2 trials
    assert page.count("| frozen heads") == 2 + 3 and page.count("| ADT against frozen heads") == 2
    assert (tmp_path / "miniature.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_trial_is_the_one_that_goes_on(small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(small, CellStore(tmp_path / "cells.json"), Silent())
    distances = {PLAIN_TRIALS[0].name: 3.0, PLAIN_TRIALS[1].name: 2.0, without_average(PLAIN_TRIALS[1]).name: 4.0}
    monkeypatch.setattr(miniature, "merit", lambda cell: distances[cell])
    monkeypatch.setattr(bench, "trial", lambda variant: variant.name)
    best, cells = bench.best(PLAIN_TRIALS[:2])
    assert best == PLAIN_TRIALS[1] and cells == list(distances)
    distances[without_average(PLAIN_TRIALS[1]).name] = 1.0
    assert bench.best(PLAIN_TRIALS[:2])[0] == without_average(PLAIN_TRIALS[1])


def test_adt_at_its_best_is_chosen_from_what_takes_nothing_away(small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(miniature, "ABLATIONS", {"paper": ABLATIONS["paper"][:1], "levers": ABLATIONS["levers"][:2]})
    bench = Bench(replace(small, ablations=("paper", "levers")), CellStore(tmp_path / "cells.json"), Silent())
    part, (worse, better) = ABLATIONS["paper"][0].name, (variant.name for variant in ABLATIONS["levers"][:2])
    runs: list[str] = []

    def cell(variant: Variant, seed: int, studies: list[Study], grid: str = LEADING) -> list[Cell]:
        runs.append(variant.name)
        return [Cell(variant.name, seed, 0.0, 0, 1, {}) for _ in studies]

    monkeypatch.setattr(bench, "cell", cell)
    monkeypatch.setattr(miniature, "merit", lambda cell: {part: 0, better: 1, worse: 2}.get(cell.run, 3))
    results = bench.run()
    assert results["finalists"]["ADT"] == ADT.name and results["finalists"][miniature.BEST] == better
    assert len(results["heldout"][miniature.BEST]) == bench.plan.seeds
    assert len(runs) == miniature.count_runs(bench.plan)


def test_frozen_heads_at_their_best_are_run_on_both_grids(small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(miniature, "ABLATIONS", {"frozen": ABLATIONS["frozen"][:2]})
    bench = Bench(replace(small, ablations=("frozen",)), CellStore(tmp_path / "cells.json"), Silent())
    best, runs = ABLATIONS["frozen"][1].name, []

    def cell(variant: Variant, seed: int, studies: list[Study], grid: str = LEADING) -> list[Cell]:
        runs.append(variant.name)
        return [Cell(variant.name, seed, 0.0, 0, 1, {}) for _ in studies]

    monkeypatch.setattr(bench, "cell", cell)
    monkeypatch.setattr(miniature, "merit", lambda cell: 0 if cell.run == best else 1)
    results = bench.run()
    assert results["finalists"][miniature.FROZEN_BEST] == best and miniature.BEST not in results["finalists"]
    assert all(len(results[split][miniature.FROZEN_BEST]) == bench.plan.seeds for split in miniature.HELDOUT.values())
    first, *tried = (cell["run"] for cell in results["trials"]["ablations: frozen"])
    assert first == results["finalists"][miniature.FROZEN] and tried == [variant.name for variant in ABLATIONS["frozen"][:2]]
    assert len(runs) == miniature.count_runs(bench.plan)
    assert miniature.called(results, miniature.FROZEN_BEST) == f"{miniature.FROZEN_BEST}: {best.removeprefix('frozen heads, ')}"


def test_rivals_are_tried_as_often_as_each_other():
    assert len(PLAIN_TRIALS) == len(FROZEN_TRIALS) == 5
    assert ADT.plan.adt == SHIPPED and ADT.plan.ema == 0  # sd-scripts keeps no average


def test_a_changed_option_makes_a_cell_stale_and_one_that_is_not_read_does_not():
    assert what_is_read(ADT) != what_is_read(replace(ADT, plan=replace(ADT.plan, adt=replace(SHIPPED, weight=4.0))))
    assert what_is_read(ADT) != what_is_read(replace(ADT, plan=replace(ADT.plan, lr=3e-4)))
    assert what_is_read(ADT) == what_is_read(replace(ADT, plan=replace(ADT.plan, adt=replace(SHIPPED, pictures_every=7))))


def test_the_counted_cost_is_that_of_its_turns():
    plan = replace(ADT.plan, batch_size=2, adt=replace(SHIPPED, warmup=2, steps=2, start_min=0.0))
    warmup, turn = mean_turns(plan)
    step = plain_step(2)
    assert turn > step and 0 < warmup < turn
    steps = steps_for(plan, 60)
    assert 2 * warmup + steps * (step + turn) == pytest.approx(60 * step, rel=0.1)
    assert steps_for(PLAIN_TRIALS[0].plan, 60) == 60
    assert steps_for(replace(plan, adt=replace(plan.adt, every=2)), 60) > steps


@pytest.fixture(scope="module", params=range(BASES), ids="base {}".format)
def published(request: pytest.FixtureRequest) -> dict:
    path = PUBLISHED / f"{name_of(request.param)}.json"
    if not path.exists():
        pytest.skip("nothing is published yet: docs/benchmarks.md says so")
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_published_page_is_what_its_json_says(published: dict):
    page = PUBLISHED / f"{name_of(published['plan']['base'])}.md"
    assert page.read_text(encoding="utf-8") == "\n\n".join(paragraphs(published)) + "\n"


def test_the_published_row_as_it_ships_is_of_todays_defaults(published: dict):
    assert published["as it ships"] == dict(options_read(SHIPPED))
    assert published["finalists"]["ADT"] == ADT.name


def test_the_finalists_had_the_best_figures_on_validation(published: dict):
    for name in ("plain", "frozen heads"):
        cells = [miniature.Cell.from_json(json.dumps(cell)) for cell in published["trials"][name]]
        assert min(cells, key=merit).run == published["finalists"][name]
    for finalist, groups in ((miniature.BEST, ("levers", "neighbours", "judges")), (miniature.FROZEN_BEST, ("frozen",))):
        tried = [published["trials"].get(f"ablations: {group}", []) for group in groups]
        if any(tried):
            best = min((miniature.Cell.from_json(json.dumps(cell)) for group in tried for cell in group), key=merit)
            assert best.run == published["finalists"][finalist]


def test_the_summary_on_the_page_is_what_the_json_says(published: dict):
    page = (PUBLISHED.parent / "benchmarks.md").read_text(encoding="utf-8")
    assert all(miniature.summary(published, grid) in page for grid in GRIDS)


def test_the_ablations_on_the_page_are_what_the_json_says(published: dict):
    text = (PUBLISHED.parent / "benchmarks.md").read_text(encoding="utf-8")
    groups = [name for name in published["trials"] if name.startswith("ablations: ")]
    assert groups == ([f"ablations: {group}" for group in ABLATIONS] if published["plan"]["base"] == 0 else [])
    assert all(miniature.trials_table(published, group) in text for group in groups)


def test_the_table_of_both_bases_is_what_their_json_says():
    found = [json.loads((PUBLISHED / f"{name_of(base)}.json").read_text(encoding="utf-8")) for base in range(BASES)]
    page = (PUBLISHED.parent / "benchmarks.md").read_text(encoding="utf-8")
    assert all(miniature.pooled(found, grid, run) in page for grid in GRIDS for run in ("ADT", miniature.DIVERSE.name))
