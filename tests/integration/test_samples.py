"""The sample files hold only keys that the real host knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toml

from tinyhost.run import host_environment

SAMPLES = Path(__file__).resolve().parents[2] / "sample_configs"


@pytest.fixture(scope="module")
def host_options(host_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    env = host_environment("sd", tmp_path_factory.mktemp("help")) | {"COLUMNS": "400"}
    command = [sys.executable, "train_network.py", "--help"]
    out = subprocess.run(command, cwd=host_dir, env=os.environ | env, capture_output=True, text=True, check=True).stdout
    return {word.strip("[],").removeprefix("--") for word in out.split() if word.strip("[").startswith("--")}


@pytest.mark.parametrize("sample", ["sd15_lora.toml", "adt_only.toml"])
def test_every_key_of_a_sample_is_an_option_of_the_host(sample: str, host_options: set[str]) -> None:
    sections = toml.loads((SAMPLES / sample).read_text(encoding="utf-8"))
    keys = {key for name, value in sections.items() for key in (value if isinstance(value, dict) else [name])}
    assert keys <= host_options
