"""Runs `tests/accelerator` in a process of its own: PyTorch counts its devices once, at the first backward pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

TESTS = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch takes no device from Python",
)
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_everything_runs_on_a_device_that_is_not_the_cpu(which: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", which]
    command = [sys.executable, "-m", "pytest", *options, TESTS / "accelerator"]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
