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


TRAINERS = {
    "sd15_lora.toml": "train_network.py",
    "adt_only.toml": "train_network.py",
    **{f"sdxl_lora_{card}gb.toml": "sdxl_train_network.py" for card in (8, 12, 16, 24)},
    "sdxl_finish.toml": "sdxl_train_network.py",
    "sd3_lora.toml": "sd3_train_network.py",
    "flux_lora.toml": "flux_train_network.py",
}


def host_options(host_dir: Path, script: str, tmp_path: Path) -> set[str]:
    """Every option that the script's own help names."""
    env = host_environment(None, tmp_path) | {"COLUMNS": "400"}
    command = [sys.executable, script, "--help"]
    out = subprocess.run(command, cwd=host_dir, env=os.environ | env, capture_output=True, text=True, check=True).stdout
    return {word.strip("[],").removeprefix("--") for word in out.split() if word.strip("[").startswith("--")}


def test_every_sample_has_its_trainer() -> None:
    assert {path.name for path in SAMPLES.glob("*.toml")} == set(TRAINERS)


@pytest.mark.parametrize("script", sorted(set(TRAINERS.values())))
def test_every_key_of_a_sample_is_an_option_of_its_trainer(script: str, host_dir: Path, tmp_path: Path) -> None:
    if not (host_dir / script).is_file():
        pytest.skip(f"{host_dir.name} has no {script}")
    options = host_options(host_dir, script, tmp_path)
    for sample in (name for name, trainer in TRAINERS.items() if trainer == script):
        sections = toml.loads((SAMPLES / sample).read_text(encoding="utf-8"))
        keys = {key for name, value in sections.items() for key in (value if isinstance(value, dict) else [name])}
        assert keys <= options, sample
