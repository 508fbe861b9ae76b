"""Scale, shift, sign and time of every family, against the host itself: see `probe.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from adtruns import observed

from tinyhost.families import family_of
from tinyhost.models import TinyModel, write_images

PROBE = Path(__file__).with_name("probe.py")

CASES = {
    "SD, noise prediction": ("train_network.py", ()),
    "SD, v-prediction": ("train_network.py", ("--v_parameterization",)),
    "SD, v-prediction with zero terminal SNR": ("train_network.py", ("--v_parameterization", "--zero_terminal_snr")),
    "SDXL, noise prediction": ("sdxl_train_network.py", ()),
    "SDXL, v-prediction": ("sdxl_train_network.py", ("--v_parameterization",)),
    "SD3": ("sd3_train_network.py", ()),
    "FLUX": ("flux_train_network.py", ("--model_prediction_type", "raw")),
    "Lumina": ("lumina_train_network.py", ()),
    "Anima": ("anima_train_network.py", ()),
    "HunyuanImage": ("hunyuan_image_train_network.py", ("--model_prediction_type", "raw")),
}
HALF_PRECISION = {"hunyuan_image_train_network.py": 1e-2}
"""The host keeps this family's autoencoder in fp16."""


OPTIONS = ("--max_train_steps", 20, "--adt_image_size", 56, "--adt_steps", 4, "--adt_begin", 0, "--adt_warmup", 0)


@pytest.mark.parametrize(("script", "options"), CASES.values(), ids=CASES)
def test_decode_time_and_unroll_agree_with_the_host(
    script: str, options: tuple[str, ...], host_dir: Path, tiny_model: TinyModel, tiny_dino: Path, tmp_path: Path
) -> None:
    if not (host_dir / script).is_file():
        pytest.skip(f"{host_dir.name} has no {script}")
    one_image = write_images(tmp_path / "images", count=1, repeats=20)
    options = ("--adt_backbone", tiny_dino, *OPTIONS, *options)
    _, errors = observed(PROBE, script, options, host_dir, tiny_model(family_of(script)), one_image, tmp_path)
    assert errors["decode"] < HALF_PRECISION.get(script, 1e-4)
    assert errors["time"] < 2e-3
    for sampler, unroll in errors["unroll"].items():
        assert max(unroll) < 1e-3, sampler
