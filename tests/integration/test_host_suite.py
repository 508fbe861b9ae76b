"""The host's own tests, with the plugin installed and with it as good as uninstalled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyhost.run import host_environment

UNCOLLECTABLE = "tests/test_optimizer.py"
"""Needs an optimizer package that the host does not ask for."""


def outcome(host_dir: Path, tmp_path: Path, disabled: str) -> str:
    """Pytest's closing line without the seconds."""
    env = host_environment(None, tmp_path) | {"ADT_PLUGIN_DISABLE": disabled, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "tests", f"--ignore={UNCOLLECTABLE}", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=host_dir, env=env, capture_output=True, text=True, timeout=300)
    return re.sub(r" in .*", "", done.stdout.strip().splitlines()[-1])


def test_they_pass_alike(host_dir: Path, tmp_path: Path) -> None:
    if not list((host_dir / "tests").glob("test_*.py")):
        pytest.skip("this version of sd-scripts has no tests")
    with_plugin = outcome(host_dir, tmp_path, "0")
    assert with_plugin == outcome(host_dir, tmp_path, "1")
    assert re.match(r"\d+ passed", with_plugin)
