"""What a run with `--adt` leaves behind, and what has to hold of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toml
import torch
from torch import Tensor

from adt_plugin import __version__
from tinyhost.models import HostModel
from tinyhost.run import OUTPUT_NAME, CompletedRun, host_arguments, host_environment
from tinyhost.warm import run_warm

NUMBERS = ("loss_g", "loss_d", "score_real", "score_gen", "grad_norm", "start")


def slow(*case: object) -> Any:
    """A parametrized case that the whole suite leaves out, but for `-m slow`."""
    return pytest.param(*case, marks=pytest.mark.slow)


def write_data_set(folder: Path, **subset: object) -> Path:
    """Write a file for `--dataset_config` with one data set of 64 pixels, whose one subset has these keys; return it."""
    path = folder / "data.toml"
    settings = {"datasets": [{"resolution": 64, "batch_size": 1, "subsets": [{"caption_extension": ".txt", **subset}]}]}
    path.write_text(toml.dumps(settings), encoding="utf-8")
    return path


def host_mentions(host_dir: Path, word: str) -> bool:
    """True if a module of the host's library has the word in it."""
    return any(word in path.read_text(encoding="utf-8") for path in (host_dir / "library").glob("*.py"))


def rows(run: CompletedRun, name: str = OUTPUT_NAME) -> list[dict[str, Any]]:
    """The rows of the turns that a run of this `--output_name` made."""
    lines = (run.output_dir / f"{name}-adt.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == "turn"]


def assert_trained_with_adt(run: CompletedRun, turns: int, name: str = OUTPUT_NAME) -> None:
    """The run ended, saved finite weights with metadata, and every turn after the warm-up gave a finite gradient."""
    tensors = run.check().saved(f"{name}.safetensors")
    assert tensors and all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
    assert run.metadata(f"{name}.safetensors")["ss_adt_version"] == __version__
    turn_rows = rows(run, name)
    assert [row["turn"] for row in turn_rows] == list(range(1, turns + 1))
    assert all(math.isfinite(row[name]) for row in turn_rows for name in NUMBERS)
    assert all(row["grad_norm"] > 0 and not row["skipped"] for row in turn_rows if not row["warmup"])


def observed(
    observer: Path,
    script: str,
    options: Sequence[object],
    host_dir: Path,
    model: HostModel,
    images: Path,
    out: Path,
    timeout: float = 200,
) -> tuple[CompletedRun, Any]:
    """Run a script of the host under `probe.py`, `watch.py` or another; the run, and what that has written as JSON."""
    arguments = [*host_arguments(script, model, images, out), "--adt", *options]
    environment = host_environment(model.family, out, hub_cache=model.tokenizers)
    result = out / f"{observer.stem}.json"
    command = [sys.executable, observer, result, script, *arguments]
    completed = CompletedRun(*run_warm([str(part) for part in command], host_dir, environment, timeout), out)
    return completed.check(), json.loads(result.read_text())


def assert_same_weights(first: CompletedRun, second: CompletedRun) -> None:
    """Bit for bit."""
    a, b = first.check().saved(), second.check().saved()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def relative_difference(first: CompletedRun, second: CompletedRun, without_turns: CompletedRun) -> float:
    """Between two runs' weights, over what turns did to those of the first."""
    a, b, idle = (flat_weights(run) for run in (first, second, without_turns))
    return float((a - b).norm() / (a - idle).norm())


def flat_weights(run: CompletedRun) -> Tensor:
    """All that a run saved, as one vector."""
    saved = sorted(run.check().saved().items())
    return torch.cat([tensor.double().flatten() for _, tensor in saved if tensor.is_floating_point()])
