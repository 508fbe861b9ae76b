"""`tests/gpu/run.sh --pack DIR --sd-scripts TREE`: what a machine without a network needs beside this repository.

DIR/wheels has what sd-scripts and the plugin need, at the versions that this environment has, for the other machine's Python;
torch and torchvision have to be there, built for its card. DIR/sd-scripts is the work tree.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "adt_plugin"
EXTRAS = ("", "host", "demo")
"""Of the project, whose packages are carried; the first stands for what it always needs."""
BUILT_FOR_A_CARD = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")
"""Whose builds differ from card to card."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
"""Of the other machine, whose glibc is of 2018 or younger."""


def needed(roots: Iterable[Requirement]) -> dict[str, str]:
    """Return name -> version of all that these requirements come to in this environment, themselves included.

    What is not installed, or built for a card, is left out, together with what it alone would need.
    """
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = ("", *requirement.extras)
        if name in found or BUILT_FOR_A_CARD.fullmatch(name):
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = installed.version
        waiting += asked_for(installed.requires or (), extras)
    return found


def asked_for(requirements: Iterable[str], extras: Sequence[str]) -> list[Requirement]:
    """Return the requirements that hold on this machine with one of these extras."""
    parsed = [Requirement(text) for text in requirements]
    return [one for one in parsed if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)]


def of_the_project() -> dict[str, str]:
    """Return what the plugin and its extras come to; the plugin itself travels with the repository."""
    return needed(asked_for(distribution(PROJECT).requires or (), EXTRAS))


def pack(folder: Path, tree: Path, python: str, without: Sequence[str]) -> None:
    """Fill the folder; packages without a wheel for that Python are named and left out.

    Args:
        tree: of sd-scripts.
        python: version of the other machine's, such as `3.12`.
        without: names of packages that are there already.

    Raises:
        SystemExit: `tree` is no work tree of sd-scripts.
    """
    if not (tree / "train_network.py").is_file():
        raise SystemExit(f"--sd-scripts {tree} has no train_network.py: give the work tree of sd-scripts")
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    target = ["--no-deps", "--only-binary=:all:", "--python-version", python, *platforms, "--dest", str(folder / "wheels")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *target]
    for name, version in sorted(of_the_project().items()):
        if name in without:
            continue
        if subprocess.run([*command, f"{name}=={version}"], check=False, stderr=subprocess.DEVNULL).returncode:
            print(f"not packed: {name} {version}, which has no wheel for that Python, or pip found none")
    shutil.copytree(tree, folder / "sd-scripts", ignore=shutil.ignore_patterns(".git", "*.png", "*.jpg"), dirs_exist_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's."""
    parser = argparse.ArgumentParser("tests/gpu/run.sh --pack", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="to be made")
    parser.add_argument("--sd-scripts", type=Path, required=True, help="work tree of sd-scripts")
    parser.add_argument("--python", default="3.12", help="version of the other machine's Python (default: 3.12)")
    parser.add_argument("--without", nargs="*", default=[], help="packages that it has")
    given = parser.parse_args(argv)
    pack(given.folder, given.sd_scripts, given.python, given.without)


if __name__ == "__main__":
    main()
