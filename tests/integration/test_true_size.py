"""Random models of the real sizes: gigabytes, and minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from adtruns import assert_trained_with_adt

from tinyhost.models import HostModel, true_size_sd15, true_size_sdxl, write_images
from tinyhost.run import run_host

LORA = ("--network_train_unet_only", "--gradient_checkpointing", "--sdpa", "--resolution", "128,128")
BF16 = ("--mixed_precision", "bf16", "--full_bf16", "--cache_latents", "--cache_text_encoder_outputs", "--no_half_vae")

CASES = {
    "SD 1.5": ("train_network.py", true_size_sd15, ("--max_train_steps", "3"), 3),
    "SDXL in bf16": ("sdxl_train_network.py", true_size_sdxl, (*BF16, "--max_train_steps", "1", "--adt_warmup", "0"), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("script", "write", "options", "turns"), CASES.values(), ids=CASES)
def test_a_model_of_true_size_trains(
    script: str,
    write: Callable[[Path], HostModel],
    options: tuple[str, ...],
    turns: int,
    host_dir: Path,
    adt_options: tuple[str | Path, ...],
    tmp_path: Path,
) -> None:
    """SD 1.5: 2 GB on disk, 6 GB of memory. SDXL: 7 GB on disk, 12 GB of memory."""
    images = write_images(tmp_path / "images", sizes=((128, 128),))
    model = write(tmp_path / "model")
    places = {"host_dir": host_dir, "model": model, "images": images, "output_dir": tmp_path / "output"}
    run = run_host(script, *LORA, *adt_options, *options, **places, timeout=3000)
    assert_trained_with_adt(run, turns=turns)
