"""`python -m adt_plugin gpu-check`, in miniature on the CPU."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest import CaptureFixture, MonkeyPatch

from adt_plugin.__main__ import main
from adt_plugin.core.config import ADTConfig
from adt_plugin.cost import check
from adt_plugin.cost.check import PARTS, Finding, Subject, findings, verdict
from adt_plugin.cost.check_cli import TINY, check_main, check_parser, miniature, subject_of
from adt_plugin.cost.cli import with_config_file
from adt_plugin.cost.measure import Measured, prepared
from adt_plugin.cost.workbench import Workbench

TRIED = ["gpu-check", "--device", "cpu", "--tiny", "--repeats", "1", "--adt_steps", "2"]


def subject() -> Subject:
    return Subject(torch.device("cpu"), TINY, miniature(ADTConfig(steps=2)), TINY, steps=100, repeats=1)


def test_every_part_says_a_sentence_and_writes_its_numbers_as_it_ends(
    tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    out, written = tmp_path / "found.jsonl", []

    def note(subject: Subject) -> check.Result:
        written.append(len(out.read_text().splitlines()))
        return True, "noted.", {}

    monkeypatch.setitem(PARTS, "last", note)
    main([*TRIED, "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["part"] for row in rows] == list(PARTS) and written == [len(PARTS) - 1]
    assert all(line.startswith(f"ok   {part}: ") for line, part in zip(lines, PARTS, strict=False))
    assert "no CUDA device, so that nothing below is said about a card" in lines[0]
    assert lines[-1].startswith("ready: ") and lines[-1].endswith(", which is no card")
    numbers = {row["part"]: row["numbers"] for row in rows}
    assert numbers["same as the CPU"]["error"] < 1e-5 and numbers["kept graphs"]["error"] < 1e-4
    assert all(norm > 0 and math.isfinite(norm) for norm in numbers["precisions"].values())
    assert numbers["your run"]["turn"] > numbers["your run"]["step"] > 0 and numbers["your run"]["ratio"] > 1
    assert numbers["your run"]["turn_peak"] > numbers["your run"]["step_peak"]


def failing(error: Exception) -> check.Result:
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore"),
            "out of memory (CUDA out of memory. Tried to allo",
        ),
        (RuntimeError("no kernel image"), "RuntimeError: no kernel image"),
    ],
)
def test_a_part_that_fails_is_a_finding_and_the_next_one_runs(
    error: Exception, said: str, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "PARTS", {"first": lambda _: failing(error), "second": lambda _: (True, "fine.", {"name": "x"})})
    with pytest.raises(SystemExit) as ended:
        check_main(TRIED[1:])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1 and lines[0].startswith(f"BAD  first: {said}")
    assert lines[1:] == ["ok   second: fine.", "not ready: first"]


def test_without_a_card_one_sentence_says_so(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="adt_plugin: not ready: PyTorch finds no CUDA device"):
        check_main([])


def test_weights_that_stay_on_the_card_are_found(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PARTS", {"offload": check.offload})
    monkeypatch.setattr(check, "measure_turn", lambda bench, *_: bench.decoder.to("meta") and Measured(1.0, 1))
    (found,) = findings(subject())
    assert not found.good and "did not come home" in found.said


@pytest.mark.parametrize("part", ["same as the CPU", "kept graphs"])
def test_gradients_that_disagree_are_found(part: str, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(check, "relative", lambda found, expected: 0.5)
    good, _, numbers = PARTS[part](subject())
    assert not good and numbers["error"] == 0.5


def test_a_small_card_holds_one_precision_at_a_time(monkeypatch: MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.nn.Module]] = []

    def prepared_alone(*arguments: object) -> Workbench:
        assert not any(bench() for bench in alive)
        bench = prepared(*arguments)
        alive.append(weakref.ref(bench.network))
        return bench

    monkeypatch.setattr(check, "prepared", prepared_alone)
    good, _, norms = check.precisions(subject())
    assert good and len(norms) == len(alive) == 3


def test_the_users_own_file_is_what_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'network_module = "networks.lora"\nnetwork_dim = 8\nmixed_precision = "fp16"\nadt_steps = 7\nresolution = 768\n'
    )
    given = with_config_file(check_parser(), ["--config_file", str(path), "--model", "sdxl", "--device", "cpu"])
    found = subject_of(given)
    assert (found.workload.model, found.workload.resolution, found.workload.rank, found.workload.dtype) == (
        "sdxl",
        768,
        8,
        "fp16",
    )
    assert (found.config.steps, found.steps, found.small.model) == (7, 1600, "sd15")


def test_the_verdict_names_what_is_not_ready() -> None:
    good = Finding("device", True, "", {"name": "A card", "gib": 8.0})
    assert verdict([good]) == "ready: A card"
    assert verdict([good, replace(good, part="offload", good=False)]) == "not ready: offload"


def test_a_turn_that_runs_out_of_memory_steps_down(monkeypatch: MonkeyPatch) -> None:
    config = miniature(ADTConfig(steps=2, memory="auto", decode_crop=0, warmup=0))
    bench = check.prepared(replace(TINY, resolution=256), config, torch.device("cpu"))
    decode = type(bench.decoder).forward

    def limited(decoder: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
        if latents.shape[-1] > 128 // 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(decoder, latents)

    assert check.window_that_fits(bench, config) == 0
    monkeypatch.setattr(type(bench.decoder), "forward", limited)
    assert check.window_that_fits(bench, config) == 128
