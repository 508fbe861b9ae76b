"""What users install, by pip, in a Python that knows nothing of this checkout: a wheel, or the repository by its address."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from adtruns import assert_trained_with_adt, slow
from installing import REPOSITORY, built, installed, repository

from adt_plugin import __version__
from tinyhost.models import HostModel
from tinyhost.run import SCRIPT, SITE, CompletedRun, host_arguments, host_environment, run_to_end

Options = tuple[str | Path, ...]
Call = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need rights that Windows does not give everyone")

WHERE = "import sys; hook = sys.modules['adt_plugin_hook']; import adt_plugin; print(hook.__file__, adt_plugin.__file__)"


@pytest.fixture(scope="module", params=["wheel", slow("repository")])
def scripts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment in which the plugin is installed."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("installed")
    if request.param == "wheel":
        return installed(built("wheel", folder / "built"), folder / "venv")
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("this is no git checkout")
    return installed(repository(folder / "repository"), folder / "venv")


@pytest.fixture
def call(scripts: Path, host_dir: Path, tmp_path: Path) -> Call:
    """Run one of its programs in the host's folder."""

    def run(program: str, *arguments: object, family: str | None = None) -> tuple[int, str, str]:
        environment = host_environment(family, tmp_path) | {"PYTHONPATH": str(SITE)}
        return run_to_end([str(scripts / program), *map(str, arguments)], host_dir, environment, timeout=200)

    return run


def test_python_starts_with_the_installed_hook(call: Call, scripts: Path) -> None:
    code, said, trouble = call("python", "-c", WHERE)
    assert (code, trouble) == (0, "")
    assert all(Path(file).is_relative_to(scripts.parent) for file in said.split()) and len(said.split()) == 2


def test_the_command_is_there_and_finds_the_hook(call: Call, host_dir: Path, tiny_dino: Path) -> None:
    code, said, _ = call("adt", "doctor", host_dir, "--adt_backbone", tiny_dino)
    assert code == 0, said
    assert f"adt_plugin {__version__} starts with this Python" in said


def test_the_real_host_trains_with_what_is_installed(
    call: Call, tiny_sd: HostModel, tiny_images: Path, adt_options: Options, tmp_path: Path
) -> None:
    arguments: Sequence[object] = (*host_arguments(SCRIPT, tiny_sd, tiny_images, tmp_path), *adt_options)
    run = CompletedRun(*call("python", SCRIPT, *arguments, family=tiny_sd.family), tmp_path)
    assert_trained_with_adt(run, turns=2)
