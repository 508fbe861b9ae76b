"""Forks of sd-scripts: work trees that SD_SCRIPTS_FORKS names, separated as in PATH."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from adtruns import assert_trained_with_adt, write_data_set

from tinyhost.families import family_of
from tinyhost.models import TinyModel
from tinyhost.run import TinyRun

FORKS = [Path(name).expanduser().resolve() for name in os.environ.get("SD_SCRIPTS_FORKS", "").split(os.pathsep) if name]
OWN_FAMILIES = {("library/anima_runtime", "anima_train_network.py"): "anima_fork"}
"""(what a fork has, a trainer of its own there) -> family of the test kit."""


@pytest.fixture(params=FORKS or [None], ids=[fork.name for fork in FORKS] or ["no-fork"])
def fork(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("no fork of sd-scripts; set SD_SCRIPTS_FORKS")
    return request.param


@pytest.mark.parametrize("script", ["train_network.py", "sdxl_train_network.py", "anima_train_network.py"])
def test_a_forks_trainers_train(
    run_tiny: TinyRun,
    tiny_model: TinyModel,
    adt_options: tuple[str | Path, ...],
    fork: Path,
    script: str,
    tiny_images: Path,
    tmp_path: Path,
    cell: Callable[..., None],
) -> None:
    """With a data set from a file: 67372a's c3115a8 fails at `--train_data_dir`, with and without the plugin."""
    if not (fork / script).is_file():
        pytest.skip(f"{fork.name} has no {script}")
    cell(script, host=fork)
    own = next((family for (part, name), family in OWN_FAMILIES.items() if (fork / part).exists() and name == script), None)
    model = tiny_model(own or family_of(script))
    (images,) = tiny_images.glob("*_shapes")
    data = ("--dataset_config", write_data_set(tmp_path, image_dir=str(images)))
    run = run_tiny("--max_train_steps", "2", *data, *adt_options, script=script, host_dir=fork, model=model)
    assert_trained_with_adt(run, turns=2)
