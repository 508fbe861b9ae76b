"""Scale, shift, sign and time of every family, against the host itself: see `probe.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tinyhost.models import HostModel, write_images
from tinyhost.run import host_arguments, host_environment, run_to_end

PROBE = Path(__file__).with_name("probe.py")

CASES = {
    "SD, noise prediction": ("train_network.py", ()),
    "SD, v-prediction": ("train_network.py", ("--v_parameterization",)),
    "SD, v-prediction with zero terminal SNR": ("train_network.py", ("--v_parameterization", "--zero_terminal_snr")),
}


def probed(script: str, options: tuple[str, ...], host_dir: Path, model: HostModel, images: Path, dino: Path, out: Path) -> Any:
    """What the probe found in a run of the host's script."""
    adt = ["--adt", "--adt_backbone", dino, "--adt_image_size", "56", "--adt_steps", "4", "--adt_warmup", "0"]
    arguments = [*host_arguments(script, model, images, out), "--max_train_steps", "20", *adt, *options]
    command = [sys.executable, PROBE, out / "errors.json", script, *arguments]
    status, stdout, stderr = run_to_end([str(part) for part in command], host_dir, host_environment(model.family, out), 200)
    assert status == 0, (stdout + stderr)[-3000:]
    return json.loads((out / "errors.json").read_text())


@pytest.mark.parametrize(("script", "options"), CASES.values(), ids=CASES)
def test_decode_time_and_unroll_agree_with_the_host(
    script: str, options: tuple[str, ...], host_dir: Path, tiny_sd: HostModel, tiny_dino: Path, tmp_path: Path
) -> None:
    one_image = write_images(tmp_path / "images", count=1, repeats=20)
    errors = probed(script, options, host_dir, tiny_sd, one_image, tiny_dino, tmp_path)
    print(errors)
    assert errors["decode"] < 1e-4
    assert errors["time"] < 2e-3
    for sampler, unroll in errors["unroll"].items():
        assert max(unroll) < 1e-3, sampler
