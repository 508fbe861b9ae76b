"""The sample files hold only keys that the real host knows, and what they say together trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toml
from adtruns import assert_trained_with_adt, slow

from adt_plugin.cost.cli import flattened
from tinyhost.models import TinyModel
from tinyhost.run import BUCKETS, TinyRun, host_environment

SAMPLES = Path(__file__).resolve().parents[2] / "sample_configs"


TRAINERS = {
    "sd15_lora.toml": "train_network.py",
    "adt_only.toml": "train_network.py",
    **{f"sdxl_lora_{card}gb.toml": "sdxl_train_network.py" for card in (8, 12, 16, 24)},
    "sdxl_finish.toml": "sdxl_train_network.py",
    "sd3_lora.toml": "sd3_train_network.py",
    "flux_lora.toml": "flux_train_network.py",
    "flux_lora_swap.toml": "flux_train_network.py",
    "chroma_lora.toml": "flux_train_network.py",
    "lumina_lora.toml": "lumina_train_network.py",
    "anima_lora.toml": "anima_train_network.py",
    "hunyuan_lora.toml": "hunyuan_image_train_network.py",
}

SMALLER = {
    "optimizer_type": "AdamW",  # bitsandbytes is not installed everywhere
    "blocks_to_swap": 0,  # swapping has tests of its own
    "vae_chunk_size": 8,
    "logging_dir": None,  # the host's log goes to the console
}
"""What a tiny model on a CPU cannot do as a preset has it."""


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


@pytest.mark.parametrize(
    ("sample", "family"),
    [
        slow("sd15_lora.toml", "sd"),
        slow("sdxl_lora_12gb.toml", "sdxl"),
        slow("sd3_lora.toml", "sd3"),
        slow("flux_lora.toml", "flux"),
        ("flux_lora_swap.toml", "flux"),
        ("chroma_lora.toml", "chroma"),
        ("lumina_lora.toml", "lumina"),
        ("anima_lora.toml", "anima"),
        ("hunyuan_lora.toml", "hunyuan"),
    ],
)
def test_what_a_sample_says_trains(
    run_tiny: TinyRun, tiny_model: TinyModel, adt_options: tuple[str | Path, ...], sample: str, family: str, tmp_path: Path
) -> None:
    """The file itself, but for the paths and sizes of the tiny model, which the kit gives on the command line."""
    keys = flattened(toml.loads((SAMPLES / sample).read_text(encoding="utf-8")))
    keys |= {name: value for name, value in SMALLER.items() if name in keys}
    keys["sample_prompts"] = str(SAMPLES / str(keys["sample_prompts"]))
    if family == "hunyuan":
        keys["mixed_precision"] = "no"  # bf16 fails in the plain host on a CPU
    written = tmp_path / sample
    written.write_text(toml.dumps({name: value for name, value in keys.items() if value is not None}), encoding="utf-8")
    options = ("--config_file", written, *adt_options, "--adt_cfg_scale", "auto", *BUCKETS)
    run = run_tiny(*options, script=TRAINERS[sample], model=tiny_model(family))
    assert_trained_with_adt(run, turns=2)
    assert run.metadata()["ss_adt_cfg_scale"] == ("1" if family == "flux" else "3")
