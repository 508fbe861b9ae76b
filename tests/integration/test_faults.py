"""Real faults in a run of the real host."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from adtruns import rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adt_plugin.core.run import state
from tinyhost.models import HostModel
from tinyhost.run import SCRIPT, TinyRun, end_group, host_arguments, host_environment

Options = tuple[str | Path, ...]


def with_broken_decoder(model: HostModel, folder: Path) -> HostModel:
    """A copy of the model whose VAE encodes well and decodes to NaN, as SDXL's does in fp16."""
    checkpoint = shutil.copytree(model.checkpoint, folder / "broken")
    path = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.weight"].fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    return dataclasses.replace(model, checkpoint=checkpoint)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_the_rows_and_not_the_training(run_tiny: TinyRun, adt_options: Options, tmp_path: Path) -> None:
    (tmp_path / "tiny-adt.jsonl").symlink_to("/dev/full")
    run = run_tiny("--max_train_steps", "3", *adt_options, output_dir=tmp_path).check()
    assert all(tensor.isfinite().all() for tensor in run.saved().values())
    assert " ".join(run.log.split()).count("no more ADT rows and pictures, training goes on") == 1


def test_a_decoder_that_gives_nan_ends_the_run_with_its_state_saved(
    run_tiny: TinyRun, adt_options: Options, tiny_sd: HostModel, tmp_path: Path
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


SAVING = ("--max_train_steps", "1000", "--save_state", "--save_every_n_steps", "1")


@contextlib.contextmanager
def running_until(
    state_file: Path, arguments: list[str], host_dir: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Start the host, and give its process as soon as the file is there; ended with signal 9 at the latest."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments], cwd=host_dir, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not state_file.exists():
            assert process.poll() is None and time.monotonic() < deadline, "the host ended by itself"
            time.sleep(0.002)
        yield process
    finally:
        end_group(process)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_a_disk_that_refuses_a_state_ends_the_run_with_the_last_whole_one_named(
    run_tiny: TinyRun, host_dir: Path, tiny_sd: HostModel, tiny_images: Path, adt_options: Options, tmp_path: Path
) -> None:
    """From some moment on no file may be larger than half of the plugin's; the host's own are smaller here."""
    arguments = [*host_arguments(SCRIPT, tiny_sd, tiny_images, tmp_path), *map(str, (*SAVING, *adt_options))]
    environment = host_environment(tiny_sd.family, tmp_path, hub_cache=tiny_sd.tokenizers)
    import resource

    third = tmp_path / "tiny-step00000003-state" / state.TENSORS
    with running_until(third, arguments, host_dir, environment) as process:
        room = third.stat().st_size // 2
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, room))
        _, log = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in log and log.count("adt_plugin: ") == 1, log[-3000:]
    named = re.search(r"could not be saved \(.*\): make room and delete it; the last whole one is (\S+), --resume", log)
    assert named, log[-2000:]
    run = run_tiny("--max_train_steps", "4", *adt_options, "--resume", named[1]).check()
    assert rows(run)[0]["turn"] == json.loads((Path(named[1]) / state.MANIFEST).read_text())["turns"] + 1


def test_a_killed_run_goes_on_from_its_last_state(
    run_tiny: TinyRun,
    host_dir: Path,
    tiny_sd: HostModel,
    tiny_images: Path,
    adt_options: Options,
    tmp_path: Path,
) -> None:
    arguments = [*host_arguments(SCRIPT, tiny_sd, tiny_images, tmp_path), *map(str, (*SAVING, *adt_options))]
    environment = host_environment(tiny_sd.family, tmp_path, hub_cache=tiny_sd.tokenizers)
    with running_until(tmp_path / "tiny-step00000003-state" / state.TENSORS, arguments, host_dir, environment):
        pass  # which ends it
    for path in tmp_path.glob(f"*-state/{state.TENSORS}"):
        with safe_open(path, framework="pt") as file:
            assert "manifest" in file.metadata()
    folder = tmp_path / "tiny-step00000002-state"
    run = run_tiny("--max_train_steps", "4", *adt_options, "--resume", folder).check()
    assert [(row["turn"], row["step"]) for row in rows(run)][:2] == [(3, 2), (4, 3)]
