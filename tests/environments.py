"""Every environment of docs/compatibility.md: made, tested on its hosts, and written down.

    python tests/environments.py                  # all of them, one host run after the other: hours
    python tests/environments.py gui --folder DIR # one of them, made in DIR/gui unless it is there

The project's own environment is the one that this command runs in; `.ci/run` makes it. The hosts are those that the tests find.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adt_plugin.host.doctor import LINES
from compatibility import PROJECT, requirements_of, take_in
from tinyhost.run import find_every_host, line_of
from tinyhost.site.sitecustomize import install as patch_imports

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "build" / "environments"

TORCH = ("torch==2.13.0",)
TORCHVISION = ("--no-deps", "torchvision==0.28.0")  # see .ci/run
TESTING = ("pytest>=8", "pytest-xdist>=3.5", "pillow>=10.1")

RUNS = "tests/integration"
WITHOUT_A_HOST = ("tests/core", "tests/demo", "tests/cost", "tests/compare")
TRAINERS = "tests/integration/test_trainers.py"
FOR_NEWEST = "not flux_train and not host_forward and not (host_networks and FLUX)"
"""With transformers 5 sd-scripts itself neither encodes a prompt of SD in its own way nor loads CLIP-L of FLUX."""
DEEPSPEED = "tests/integration/test_deepspeed.py"  # only in an environment of its own: accelerate imports it in every run


@dataclass(frozen=True)
class Environment:
    """Requirements, and what is run with them.

    Attributes:
        name: of its column; its requirements are those of `requirements_of(name)`.
        hosts: lines of development of sd-scripts (`LINES`) that it is tested on.
        tests: arguments of pytest on every host.
        python: command that makes it.
        strict: whether warnings end tests there; what an old or foreign set of versions warns of is not this project's to mend.
    """

    name: str
    hosts: tuple[str, ...]
    tests: tuple[str, ...]
    python: str = "python3.11"
    strict: bool = False


ENVIRONMENTS = (
    Environment(PROJECT, tuple(version for _, version in LINES), (RUNS,), python=sys.executable, strict=True),
    Environment(
        "newest", ("v0.11",), (*WITHOUT_A_HOST, f"{TRAINERS}::test_every_trainer_trains", "-k", FOR_NEWEST), strict=True
    ),
    Environment("deepspeed", ("v0.11",), (DEEPSPEED,)),
    Environment("gui", ("v0.11",), (TRAINERS,)),
    Environment("gui, Python 3.10", ("v0.11",), (TRAINERS, "-k", "every_trainer_trains or lycoris"), python="python3.10"),
    Environment("v0.9.1", ("v0.9 or older",), (TRAINERS,), python="python3.10"),
)


def made(environment: Environment, folder: Path) -> str:
    """The interpreter of an environment, which is made unless it is there."""
    if environment.name == PROJECT:
        return sys.executable
    place = folder / environment.name.replace(", ", "-").replace(" ", "")
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        subprocess.run([environment.python, "-m", "venv", place], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for wanted in (TORCH, TORCHVISION, (*TESTING, "-r", str(requirements_of(environment.name))), ("--no-deps", "-e", ".")):
        subprocess.run([*pip, *wanted], cwd=REPOSITORY, check=True)
    return str(python)


def test(python: str, arguments: Sequence[str], host: Path) -> None:
    """Run tests on a host with an interpreter; what failed is said by pytest, and stands in the cells."""
    command = [python, "-m", "pytest", "-q", *arguments]
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"SD_SCRIPTS_DIR": str(host)}, check=False)


def hosts_of(environment: Environment) -> Iterator[Path]:
    """The work trees that it is tested on, as far as they are found."""
    names = [version for _, version in LINES]
    for host in find_every_host():
        if names[line_of(host)] in environment.hosts:
            yield host


def main() -> None:
    """Run what is asked for, and write the page after every host."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(known.name for known in ENVIRONMENTS))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where environments lie (default: build/environments)")
    given = parser.parse_args()
    by_name = {known.name: known for known in ENVIRONMENTS}
    if unknown := set(given.names) - by_name.keys():
        parser.error(f"unknown environment {', '.join(unknown)}: choose from {', '.join(by_name)}")
    for environment in [by_name[name] for name in given.names or by_name]:
        python = made(environment, given.folder)
        for host in hosts_of(environment):
            cells = given.folder / f"{environment.name} {host.name}.jsonl"
            cells.unlink(missing_ok=True)
            options = ["--compatibility", str(cells), "--environment", environment.name]
            if not environment.strict:
                options += ["-W", "default"]
            test(python, (*options, *environment.tests), host)
            take_in([cells])


if __name__ == "__main__":
    patch_imports()
    main()
