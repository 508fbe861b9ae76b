"""Random models of the real sizes: gigabytes, and minutes on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from adtruns import assert_trained_with_adt

from tinyhost.models import HostModel, write_images
from tinyhost.run import host_environment, run_host
from tinyhost.true import flux, sd3
from tinyhost.true_size import write_flux, write_sd3, write_sd15, write_sdxl
from tinyhost.weights import Tree, header, tensor_shapes

LORA = ("--network_train_unet_only", "--gradient_checkpointing", "--sdpa", "--resolution", "128,128")
BF16 = ("--mixed_precision", "bf16", "--full_bf16", "--cache_latents", "--cache_text_encoder_outputs", "--no_half_vae")
ONE_STEP = (*BF16, "--max_train_steps", "1", "--adt_warmup", "0")


def write_shallow_flux(folder: Path) -> HostModel:
    """FLUX.1 of the true widths in fp8, with one block of each kind: the host reads their number from the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flux, "SIZES", replace(flux.SIZES, doubles=1, singles=1))
        return write_flux(folder, "float8_e4m3fn")


CASES = {
    "SD 1.5": ("train_network.py", write_sd15, ("--max_train_steps", "3"), 3),
    "SDXL in bf16": ("sdxl_train_network.py", write_sdxl, ONE_STEP, 1),
    "SD3 in bf16": ("sd3_train_network.py", write_sd3, ONE_STEP, 1),
    "FLUX of two blocks in fp8": ("flux_train_network.py", write_shallow_flux, (*ONE_STEP, "--fp8_base"), 1),
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
    """SD 1.5: 2 GB on disk, 6 GB of memory. SDXL: 7 GB on disk, 12 GB of memory. SD3: 4 GB, 8 GB. FLUX: 1 GB, 4 GB."""
    images = write_images(tmp_path / "images", sizes=((128, 128),))
    model = write(tmp_path / "model")
    places = {"host_dir": host_dir, "model": model, "images": images, "output_dir": tmp_path / "output"}
    run = run_host(script, *LORA, *adt_options, *options, **places, timeout=3000)
    assert_trained_with_adt(run, turns=turns)


# What is too large to be written in a test: the file is all hole behind its header, and the host maps it into memory.

LOAD = {
    "flux": "flux_utils.load_flow_model(path, None, 'cpu')[1]",
    "ae": "flux_utils.load_ae(path, torch.bfloat16, 'cpu')",
    "sd3": "sd3_utils.load_mmdit(load_file(path), torch.bfloat16, 'cpu')",
}
SHAPES = """
import json, sys
import torch
from safetensors.torch import load_file
from library import flux_utils, sd3_utils
path = sys.argv[1]
model = {load}
print(json.dumps({{key: [str(tensor.device), str(tensor.dtype), *tensor.shape] for key, tensor in model.state_dict().items()}}))
"""

FILES = {
    "FLUX.1 in bf16": ("flux", flux.denoiser(), torch.bfloat16, 23.8e9),
    "FLUX.1 in fp8": ("flux", flux.denoiser(), torch.float8_e4m3fn, 11.9e9),
    "the autoencoder of FLUX.1": ("ae", flux.vae(), torch.bfloat16, 0.168e9),
    "SD3 medium": ("sd3", sd3.checkpoint(), torch.bfloat16, 4.34e9),
}
"""How the host loads each, what is written, and the size of the published file, in bytes."""


@pytest.mark.parametrize(
    ("load", "tree", "dtype", "size"),
    [
        pytest.param(*values, id=name, marks=[pytest.mark.slow] if name in ("FLUX.1 in fp8", "SD3 medium") else [])
        for name, values in FILES.items()
    ],
)
def test_names_and_shapes_are_those_of_the_hosts_own_model(
    load: str, tree: Tree, dtype: torch.dtype, size: float, host_dir: Path, tmp_path: Path
) -> None:
    """The host builds its model on no device and puts the file's tensors in place: none is left over on either side."""
    if not (host_dir / "library" / "flux_utils.py").is_file():
        pytest.skip("this version of sd-scripts has neither FLUX.1 nor SD3")
    path, shapes = tmp_path / "model.safetensors", dict(tensor_shapes(tree))
    with path.open("wb") as file:
        file.write(header(tree, dtype))
        file.truncate(file.tell() + sum(map(prod, shapes.values())) * dtype.itemsize)
    assert path.stat().st_size == pytest.approx(size, rel=0.01)
    code, environment = SHAPES.format(load=LOAD[load]), host_environment(None, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=host_dir, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    prefix = "model.diffusion_model." if load == "sd3" else ""
    expected = {key[len(prefix) :]: ["cpu", str(dtype), *shape] for key, shape in shapes.items() if key.startswith(prefix)}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
