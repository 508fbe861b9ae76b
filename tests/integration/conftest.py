"""Fixtures of the tests that meet sd-scripts, real or make-believe."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def adt_options(tiny_dino: Path) -> tuple[str | Path, ...]:
    """`--adt` at the tiny models' size: a turn in every step from the first on at the run's own rate, a picture every
    second turn, one turn of warm-up; without guidance, which `test_trainers.py` has with every trainer."""
    return (
        "--adt",
        "--adt_backbone",
        tiny_dino,
        "--adt_image_size",
        "56",
        "--adt_steps",
        "4",
        "--adt_begin",
        "0",
        "--adt_lr",
        "0",
        "--adt_warmup",
        "1",
        "--adt_pictures_every",
        "2",
        "--adt_cfg_scale",
        "1",
    )


PACKAGES = ("torch", "numpy", "accelerate", "diffusers", "transformers", "lycoris_lora")
"""Whose versions make an environment."""


@pytest.fixture
def cell(host_dir: Path, record_property: Callable[[str, object], None], pytestconfig: pytest.Config) -> Callable[..., None]:
    """Say which cell of docs/compatibility.md the test is: `cell(trainer, flag)`, with `host=` on a fork."""

    def say(trainer: str, flag: str = "", host: Path | None = None) -> None:
        commit = commit_of(host_dir) if host is None else f"{host.name} {commit_of(host)}"
        where = {"commit": commit, "environment": pytestconfig.getoption("--environment")}
        record_property("compatibility", where | {"trainer": trainer, "flag": flag, "versions": versions()})

    return say


def versions() -> dict[str, str]:
    """What this interpreter, which also runs the host, has installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def commit_of(host_dir: Path) -> str:
    """Hash and date of the host's commit; empty where it is no clone."""
    command = ["git", "-C", str(host_dir), "log", "-1", "--format=%h (%cs)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
