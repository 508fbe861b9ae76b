"""The bench of other samplers: each of them samples, its figures are told apart, and its table is what its JSON says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.demo.study import Study
from adt_plugin.demo.variants import BASE, PLAIN
from benchmarks import DOCUMENTS, miniature, miniature_samplers, samplers, small_sd
from benchmarks.beds.small_sd import sample
from benchmarks.samplers import POINTS, name_of, sampler_of
from benchmarks.store import CellStore
from tinyhost.models import scheduler


class Oracle(nn.Module):
    """Knows the image of every class, and so the noise."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images, self.alphas = images, scheduler().alphas_cumprod

    def forward(self, latents: Tensor, timesteps: Tensor, classes: Tensor) -> Tensor:
        kept = self.alphas[timesteps.long()].view(-1, 1, 1, 1)
        return (latents - kept.sqrt() * self.images[classes]) / (1 - kept).sqrt()


@pytest.mark.parametrize("name", sorted({name for name, _ in POINTS}))
def test_every_sampler_comes_to_the_image_that_the_denoiser_knows(name: str) -> None:
    images = torch.randn((11, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    noise = torch.randn((6, 4, 8, 8), generator=torch.Generator().manual_seed(2))
    labels = torch.arange(6)
    found = sample(Oracle(images), noise, labels, 10, guidance=1.0, chunk=4, sampler=sampler_of(name))
    assert (found - images[:6]).abs().mean() < 0.06  # leading steps end a little before the image


def cell(value: float) -> dict[str, Any]:
    """Scores that all have this value."""
    return {"scores": {name_of(*point): {"fd": value, "well_formed": value} for point in POINTS}}


def test_the_table_has_means_and_the_changes_of_adt() -> None:
    results = {f"heldout: {name}, seed {seed}": cell(value * seed) for name, value in (("plateau", 4), (small_sd.ADT.name, 3))
               for seed in (1, 2)}  # fmt: skip
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in samplers.summary(results).splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["plateau", "2", "6.00 (6.00)"],
        [small_sd.ADT.name, "2", "4.50 (4.50)"],
        [f"{small_sd.ADT.name} against plateau", "", "-25 %"],
    ]


def test_the_table_is_what_the_json_says() -> None:
    path = DOCUMENTS / "samplers.json"
    if not path.exists():
        pytest.skip("nothing is published yet: docs/benchmarks.md says so")
    groups, page = CellStore(path).results(), (DOCUMENTS.parent / "benchmarks.md").read_text(encoding="utf-8")
    assert miniature_samplers.summary(groups.pop(miniature_samplers.GROUP)) in page
    ((_, results),) = groups.items()
    assert samplers.summary(results) in page


def test_the_miniatures_runs_are_scored_at_every_point_once(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = replace(tiny_study, evaluator=tiny_study.evaluator.shortened(12))
    monkeypatch.setattr(miniature_samplers, "STEPS", (2,))
    monkeypatch.setattr(miniature_samplers, "RUNS", miniature_samplers.RUNS[:4])
    monkeypatch.setattr(
        miniature_samplers, "WALKS", {name: miniature_samplers.WALKS[name] for name in miniature_samplers.SHOWN}
    )
    monkeypatch.setattr(miniature_samplers, "steps_for", lambda plan, units: 1)
    monkeypatch.setattr(
        miniature_samplers, "variants", lambda: {"base": BASE} | dict.fromkeys(miniature_samplers.RUNS[1:], PLAIN)
    )
    store = CellStore(tmp_path / "samplers.json", miniature_samplers.GROUP)
    miniature_samplers.measure(study, store, 1, 20.0)
    results = store.results()[miniature_samplers.GROUP]
    assert len(results) == len(miniature_samplers.RUNS)
    for points in (result["scores"] for result in results.values()):
        assert len({figures["fd"] for found in points.values() for figures in found.values()}) == len(points)
    monkeypatch.setattr(Study, "tune", None)
    miniature_samplers.measure(study, store, 1, 20.0)  # nothing is tuned again
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in miniature_samplers.summary(results).splitlines()[2:]]
    assert [row[:3] for row in rows[:6]] == [
        *(["DDIM", run, "1"] for run in miniature_samplers.RUNS),
        *(["DDIM", f"ADT against {other}", ""] for other in (miniature.PLAIN, miniature.FROZEN)),
    ]
    assert set(rows[4][3:]) == {"+0 %"} and len(rows) == 6 * len(miniature_samplers.SHOWN)


def test_turns_on_a_trailing_grid_differ_in_nothing_else() -> None:
    found = miniature_samplers.variants()
    assert set(found) >= set(miniature_samplers.RUNS)
    ours, usual = found[miniature_samplers.TRAILING].plan, found["ADT"].plan
    assert ours != usual and replace(ours, adt=replace(ours.adt, spacing="auto")) == usual
