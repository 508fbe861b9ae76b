"""Stored results: read back as they were, never measured twice, measured anew when a setting changes."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.demo.study import Setting
from adt_plugin.demo.variants import ADT
from benchmarks import cost_sweep
from benchmarks.ablations import LEVERS, PAPER
from benchmarks.store import CellStore, Result, digest, options_but
from benchmarks.strategies import white_noise_start

RESULT: Result = {"seconds": 12.5, "scores": [1.5, 0.9]}


def never() -> Result:
    raise AssertionError("measured again")


def test_a_stored_result_is_not_measured_again(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells.json")
    assert store.get("adt", ("settings", 1)) is None
    assert store.get_or_run("adt", ("settings", 1), lambda: RESULT) == (RESULT, True)
    assert store.get_or_run("adt", ("settings", 1), never) == (RESULT, False)
    assert store.results() == {"cells": {"adt": RESULT}}


def test_other_settings_are_measured_anew_and_take_the_old_ones_place(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells.json")
    store.get_or_run("adt", ("settings", 1), lambda: RESULT)
    assert store.get("adt", ("settings", 2)) is None
    assert store.get_or_run("adt", ("settings", 2), lambda: {"seconds": 1.0}) == ({"seconds": 1.0}, True)
    assert store.results() == {"cells": {"adt": {"seconds": 1.0}}}


def test_groups_and_processes_that_share_a_file_do_not_touch_each_other(tmp_path: Path) -> None:
    cpu, gpu = (CellStore(tmp_path / "cells.json", name) for name in ("cpu", "gpu"))

    def while_another_writes() -> Result:
        gpu.get_or_run("turn", 1, lambda: {"seconds": 0.1})
        return RESULT

    cpu.get_or_run("turn", 1, while_another_writes)
    assert cpu.results() == {"cpu": {"turn": RESULT}, "gpu": {"turn": {"seconds": 0.1}}}


def test_an_interrupted_measurement_is_not_stored(tmp_path: Path) -> None:
    def interrupted() -> Result:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CellStore(tmp_path / "cells.json").get_or_run("adt", 1, interrupted)
    assert list(tmp_path.iterdir()) == []


def test_digests_tell_plans_and_settings_apart() -> None:
    digests = {digest((Setting(), variant)) for variant in (ADT, *PAPER, *LEVERS)}
    assert len(digests) == 1 + len(PAPER) + len(LEVERS)
    assert digest(Setting(split="validation")) != digest(Setting())
    assert digest(("a", "bc")) != digest(("ab", "c")) and digest((1, (2, 3))) != digest(((1, 2), 3))


def test_a_function_is_known_by_its_name() -> None:
    assert digest(white_noise_start) != digest(never)
    assert "0x" not in "".join(str(part) for part in [digest(white_noise_start)])


@pytest.mark.parametrize("spec", dataclasses.fields(ADTConfig), ids=lambda spec: spec.name)
def test_every_option_is_part_of_a_digest(spec: Any) -> None:
    changed = ADTConfig()
    object.__setattr__(changed, spec.name, "something else")
    assert digest(changed) != digest(ADTConfig())


@pytest.mark.parametrize("function", [lambda: None, functools.partial(print)], ids=["lambda", "partial"])
def test_a_function_that_another_could_be_taken_for_is_refused(function: object) -> None:
    with pytest.raises(TypeError, match="name of its own"):
        digest(["turn", function])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_label_of_the_cost_sweep_stands_for_one_set_of_settings(device: str) -> None:
    """Two jobs that disagree about a cell would measure it again, one after the other, each time that the sweep resumes."""
    digests: dict[str, set[str]] = {}
    for job in cost_sweep.jobs(cost_sweep.scale_of(torch.device(device))):
        for label, measurement in job.measurements.items():
            digests.setdefault(label, set()).add(digest(cost_sweep.settings_of(job, measurement)))
    assert [label for label, found in digests.items() if len(found) > 1] == []


def test_a_changed_default_makes_a_cell_of_the_cost_sweep_unknown(tmp_path: Path) -> None:
    """A store that went by labels alone would return what an older default had cost."""
    job = next(job for job in cost_sweep.jobs(cost_sweep.scale_of(torch.device("cpu"))) if job.config.decode_crop)
    label, measurement = list(job.measurements.items())[-1]
    store = CellStore(tmp_path / "cost.json")
    store.get_or_run(label, cost_sweep.settings_of(job, measurement), lambda: RESULT)
    assert store.get(label, cost_sweep.settings_of(job, measurement)) == RESULT
    other = dataclasses.replace(job, config=ADTConfig(decode_crop=128))
    assert store.get(label, cost_sweep.settings_of(other, measurement)) is None
    longer = cost_sweep._turn(ADTConfig(steps=6), 3)
    assert store.get(label, cost_sweep.settings_of(job, longer)) is None


def test_a_young_option_that_is_off_leaves_what_was_measured_before_it_valid() -> None:
    assert "diversity" not in dict(options_but(ADTConfig(diversity=0.0), ()))
    assert dict(options_but(ADTConfig(diversity=10.0), ()))["diversity"] == 10.0
    assert dict(options_but(ADTConfig(), ("weight",))).keys().isdisjoint({"weight", "diversity"})
    off, on = (cost_sweep.what_is_read(ADTConfig(diversity=value)) for value in (0.0, 10.0))
    assert set(on) - set(off) == {("diversity", 10.0)}


def test_every_option_is_known_to_be_read_or_not() -> None:
    """Whoever adds an option says whether what it costs has to be measured anew."""
    names = [spec.name for spec in dataclasses.fields(ADTConfig)]
    assert sorted((*cost_sweep.READ, *cost_sweep.UNREAD)) == sorted(names)


def test_everything_in_the_published_store_was_measured_with_todays_settings() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "cost.json"
    (processor,) = (name for name in json.loads(path.read_text(encoding="utf-8")) if name != "counted")
    store = CellStore(path, processor)
    for job in cost_sweep.jobs(cost_sweep.scale_of(torch.device("cpu"))):
        for label, measurement in job.measurements.items():
            assert store.get(label, cost_sweep.settings_of(job, measurement)), label
