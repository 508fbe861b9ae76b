"""Real faults in a run of the real host."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from adtruns import rows
from safetensors.torch import load_file, save_file

from adt_plugin import state
from tinyhost.models import HostModel
from tinyhost.run import TinyRun


def with_broken_decoder(model: HostModel, folder: Path) -> HostModel:
    """A copy of the model whose VAE encodes well and decodes to NaN, as SDXL's does in fp16."""
    checkpoint = shutil.copytree(model.checkpoint, folder / "broken")
    path = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.weight"].fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    return dataclasses.replace(model, checkpoint=checkpoint)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_the_rows_and_not_the_training(
    run_tiny: TinyRun, adt_options: tuple[str | Path, ...], tmp_path: Path
) -> None:
    (tmp_path / "tiny-adt.jsonl").symlink_to("/dev/full")
    run = run_tiny("--max_train_steps", "3", *adt_options, output_dir=tmp_path).check()
    assert all(tensor.isfinite().all() for tensor in run.saved().values())
    assert " ".join(run.log.split()).count("no more ADT rows and pictures, training goes on") == 1


def test_a_decoder_that_gives_nan_ends_the_run_with_its_state_saved(
    run_tiny: TinyRun, adt_options: tuple[str | Path, ...], tiny_sd: HostModel, tmp_path: Path
) -> None:
    model = with_broken_decoder(tiny_sd, tmp_path)
    run = run_tiny("--max_train_steps", "8", *adt_options, "--adt_max_bad_turns", "3", model=model)
    assert run.returncode == 1
    sentence = run.stderr.split("adt_plugin: ")[1]
    assert sentence.startswith(
        "3 turns in a row were not finite, first in decoded training images: set --adt_decode_dtype fp32"
    )
    assert len(rows(run)) == 3
    folder = run.output_dir / "tiny-adt-stopped-state"
    assert (folder / state.TENSORS).is_file() and str(folder) in sentence.replace("\n", "")
    resumed = run_tiny("--max_train_steps", "4", "--resume", folder, env={"ADT_PLUGIN_DISABLE": "1"}).check()
    assert all(tensor.isfinite().all() for tensor in resumed.saved().values())
