"""The direction of every family's gradient, in the host's own trainers: see `ascent.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from adtruns import observed

from tinyhost.families import family_of
from tinyhost.models import TinyModel

ASCENT = Path(__file__).with_name("ascent.py")

OPTIONS = {
    "--adt_image_size": 56,
    "--adt_steps": 4,
    "--adt_begin": 0,
    "--adt_lr": 0,
    "--adt_warmup": 2,
    "--adt_weight": 1,
    "--adt_cfg_scale": 1,  # with guidance the gradient leaves the empty prompt's prediction out, and its account is not whole
    "--adt_balance": "none",
    "--adt_max_grad_ratio": 1000,
    "--adt_grad_mask": "all",
    "--adt_disc_lr": 0,
    "--adt_decode_crop": 32,
}
TRAILING = ("--adt_spacing", "trailing")
"""Leading grids end at timestep 1, where a denoiser changes next to nothing."""

CASES = {
    "SD, noise prediction, ddim": ("train_network.py", TRAILING),
    "SD, v-prediction, euler": ("train_network.py", (*TRAILING, "--v_parameterization", "--adt_sampler", "euler")),
    "SDXL, noise prediction, dpm++": ("sdxl_train_network.py", (*TRAILING, "--adt_sampler", "dpm++")),
    "SD3": ("sd3_train_network.py", ()),
    "FLUX": ("flux_train_network.py", ("--model_prediction_type", "raw")),
    "Lumina": ("lumina_train_network.py", ()),
    "Anima": ("anima_train_network.py", ()),
    "HunyuanImage": ("hunyuan_image_train_network.py", ("--model_prediction_type", "raw")),
}


@pytest.mark.parametrize(("script", "options"), CASES.values(), ids=CASES)
def test_a_step_on_the_turns_gradient_alone_raises_the_score(
    script: str,
    options: tuple[str, ...],
    host_dir: Path,
    tiny_model: TinyModel,
    tiny_images: Path,
    tiny_dino: Path,
    tmp_path: Path,
) -> None:
    if not (host_dir / script).is_file():
        pytest.skip(f"{host_dir.name} has no {script}")
    fixed = (part for item in OPTIONS.items() for part in item)
    options = ("--adt_backbone", tiny_dino, "--max_train_steps", 4, *fixed, *options)
    _, by_start = observed(ASCENT, script, options, host_dir, tiny_model(family_of(script)), tiny_images, tmp_path)
    for found in by_start.values():
        assert found["rise"] > 0 > found["fall"]
    last = by_start["1"]  # one step is walked: nothing is stopped that depends on the weights, the gradient is the whole one
    assert (last["rise"] - last["fall"]) / 2 == pytest.approx(last["expected"], rel=0.1)
