"""Fixtures shared by all tests. Host tests run the real sd-scripts; they are skipped where no work tree is found."""

from __future__ import annotations

import os

# Before torch or a Hugging Face library is imported: nothing is looked up online, and two workers share two cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tinyhost.families import family_of
from tinyhost.models import HostModel, TinyModel, write_dinov2, write_images, write_tiny_model
from tinyhost.report import host_summary, write_cells
from tinyhost.run import NO_HOST, SCRIPT, CompletedRun, TinyRun, find_every_host, find_hosts, run_host
from tinyhost.site.sitecustomize import install as patch_imports
from tinyhost.warm import run_warm

# transformers and diffusers import torchvision here as well.
patch_imports()

HOSTS, EVERY_HOST = find_hosts(), find_every_host()
HOST_REQUIREMENTS = ("cv2", "einops", "imagesize", "rich", "toml", "torchvision", "voluptuous")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs on all cores, if pytest-xdist is there and nobody has chosen otherwise; a part in one process."""
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return  # a worker would start workers of its own
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.getoption("collectonly")
    if whole and config.option.numprocesses is None:
        config.option.numprocesses, config.option.dist = "auto", "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the host is a host test; the longest of all comes first, so that no worker waits for another at the end."""
    items.sort(key=lambda item: item.path.name != "test_accelerator.py")
    for item in items:
        if "host_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.host)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility", type=Path, help="append the cells of docs/compatibility.md that ran to this file")
    parser.addoption("--environment", default="project", help="name of the environment whose cells they are")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not hasattr(terminalreporter.config, "workerinput"):  # pytest-xdist's workers have a summary of their own
        write_cells(terminalreporter.config.getoption("--compatibility"), terminalreporter.stats)
    lines = host_summary(terminalreporter.stats)
    if lines:
        terminalreporter.section("host tests")
    for line in lines:
        terminalreporter.write_line(line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give host tests their work trees: the default one, or, with the marker `every_host`, all that are found."""
    if "host_dir" in metafunc.fixturenames:
        hosts = EVERY_HOST if metafunc.definition.get_closest_marker("every_host") else HOSTS
        metafunc.parametrize(
            "host_dir", hosts or [None], ids=[host.name for host in hosts] or ["no-host"], indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def host_dir(request: pytest.FixtureRequest) -> Path:
    """A work tree of sd-scripts; with several in SD_SCRIPTS_DIR every host test runs on each."""
    if request.param is None:
        pytest.skip(NO_HOST)
    missing = [name for name in HOST_REQUIREMENTS if find_spec(name) is None]
    if missing:
        pytest.skip(f"requirements of sd-scripts are not installed: {', '.join(missing)}")
    return request.param


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """The random tiny model of a family, written once per session: `tiny_model("flux")`."""

    @cache
    def write(family: str) -> HostModel:
        return write_tiny_model(family, tmp_path_factory.mktemp(f"tiny_{family}"))

    return write


@pytest.fixture(scope="session")
def tiny_sd(tiny_model: TinyModel) -> HostModel:
    """A random tiny Stable Diffusion 1.x; its `checkpoint` is a diffusers folder."""
    return tiny_model("sd")


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random tiny DINOv2 with its preprocessor file."""
    return write_dinov2(tmp_path_factory.mktemp("tiny_dino"))


@pytest.fixture(scope="session")
def tiny_dino_registers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random tiny DINOv2 with four register tokens and its preprocessor file."""
    return write_dinov2(tmp_path_factory.mktemp("tiny_dino_registers"), registers=4)


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training folder with four captioned images of 64x64 pixels."""
    return write_images(tmp_path_factory.mktemp("tiny_images"))


@pytest.fixture(scope="session")
def tiny_bucket_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training folder with four captioned images, two of 64x64 and two of 128x64 (width x height) pixels.

    With `tinyhost.run.BUCKETS` among the arguments the host sorts them into two buckets.
    """
    return write_images(tmp_path_factory.mktemp("tiny_bucket_images"), sizes=((64, 64), (128, 64)))


@pytest.fixture(scope="session")
def run_tiny(host_dir: Path, tiny_model: TinyModel, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Run a script of the host on the tiny model of its family, by default the tiny SD.

    For example `run_tiny("--max_train_steps", "4", launcher="accelerate").check()`; with `runner=run_to_end` Python starts as
    on a user's command line, and with the default it is forked where that is the same. Skips where the host has no such script.
    """

    def run(*args: str | Path, script: str = SCRIPT, **keywords: object) -> CompletedRun:
        if not (host_dir / script).is_file():
            pytest.skip(f"{host_dir.name} has no {script}")
        keywords = {"host_dir": host_dir, "images": tiny_images, "runner": run_warm} | keywords
        keywords.setdefault("output_dir", tmp_path_factory.mktemp("output"))
        if "model" not in keywords:
            keywords["model"] = tiny_model(family_of(script))
        return run_host(script, *args, **keywords)

    return run
