"""The command `doctor`: whether a work tree of sd-scripts has what the plugin hooks into.

The tree is read, not run: a trainer's seams are sought in the source of its modules, so that the answer needs none of the
host's requirements and no model.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adt_plugin import __version__
from adt_plugin.host.activation import HostFinder
from adt_plugin.host.entry import ARGUMENTS, VERIFICATION
from adt_plugin.host.families import ACCELERATOR, FAMILIES, MASKING, METADATA, SD, Family
from adt_plugin.host.seams import Seam
from adt_plugin_hook import AdtPluginHook

PACKAGES = ("torch", "diffusers", "transformers", "accelerate")

LINES = (
    ("library/args.py", "v0.11"),
    ("library/strategy_base.py", "v0.10"),
    ("library/train_util.py", "v0.9 or older"),
)
"""A file that tells the host's version, newest first."""

DESCRIPTION = (
    "Tell whether a work tree of sd-scripts has what the plugin hooks into. Its files are read and not run, so none of its "
    "requirements need to be installed."
)


@dataclass(frozen=True)
class Finding:
    """One seam of one trainer.

    Attributes:
        seam: its name.
        purpose: what the plugin needs it for.
        place: file and line where it was found, or where it was sought in vain.
        found: whether it can be patched.
    """

    seam: str
    purpose: str
    place: str
    found: bool


def trainers(host: Path) -> Iterator[tuple[str, Family]]:
    """Yield the script and the family of each served trainer that the tree has."""
    for family in FAMILIES:
        for script in family.scripts:
            if (host / script).is_file():
                yield script, family


def not_served(host: Path) -> list[str]:
    """Return the tree's other scripts that train: other tasks, or a fork's own trainers, which are tried by their prefix."""
    served = {script for script, _ in trainers(host)}
    return sorted(path.name for path in host.glob("*train*.py") if path.name not in served)


def examine(host: Path, family: Family) -> list[Finding]:
    """Look for every seam that a trainer of the family needs."""
    seams = [ARGUMENTS, VERIFICATION, ACCELERATOR, family.noising, MASKING, METADATA]
    vae = [find(host, seam) for seam in family.vae]
    loader = next((finding for finding in vae if finding.found), vae[-1])
    return [*(find(host, seam) for seam in seams), loader, find_denoiser(host, family)]


def find(host: Path, seam: Seam) -> Finding:
    """Look for the seam's function in the tree, and compare its first parameters with the expected ones."""
    sought = []
    for module in seam.modules:
        path = Path(*module.split(".")).with_suffix(".py")
        function = definitions(host / path).get(seam.function)
        if function is None:
            sought.append(str(path))
            continue
        parameters = tuple(argument.arg for argument in function.args.posonlyargs + function.args.args)
        place, matches = f"{path}:{function.lineno}", parameters[: len(seam.parameters)] == seam.parameters
        place += "" if matches else f" has ({', '.join(parameters)}), expected first ({', '.join(seam.parameters)})"
        return Finding(seam.function, seam.purpose, place, matches)
    return Finding(seam.function, seam.purpose, f"not in {', '.join(sought)}", False)


def find_denoiser(host: Path, family: Family) -> Finding:
    """Look for one of the denoiser's classes in the modules of `library`."""
    for path in sorted((host / "library").glob("*.py")):
        for name, line in classes(path).items():
            if name in family.denoisers:
                return Finding(name, "the denoiser", f"{path.relative_to(host)}:{line}", True)
    return Finding(" or ".join(family.denoisers), "the denoiser", "not in library", False)


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file; an empty one where there is no file, or none that this Python can read."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def definitions(path: Path) -> dict[str, ast.FunctionDef]:
    """Map the names of a module's functions, and of its classes' methods as `Class.method`, to their syntax trees."""
    found = {node.name: node for node in parsed(path).body if isinstance(node, ast.FunctionDef)}
    for owner in (node for node in parsed(path).body if isinstance(node, ast.ClassDef)):
        found |= {f"{owner.name}.{node.name}": node for node in owner.body if isinstance(node, ast.FunctionDef)}
    return found


def classes(path: Path) -> dict[str, int]:
    """Map the names of a module's classes to the lines, from 1, where they begin."""
    return {node.name: node.lineno for node in parsed(path).body if isinstance(node, ast.ClassDef)}


def version(host: Path) -> str:
    """Name the line of development that the tree's files belong to, and its commit if it is a clone."""
    line = next((name for file, name in LINES if (host / file).is_file()), "unknown")
    command = ["git", "-C", str(host), "log", "-1", "--format=%h of %cs"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return f"{line}{f' (commit {commit})' if commit else ''}"


def surroundings() -> Iterator[str]:
    """Yield a line for the plugin and one for each package that it shares with the host, as this Python has them."""
    hooked = any(isinstance(finder, HostFinder) or type(finder).__name__ == AdtPluginHook.__name__ for finder in sys.meta_path)
    way = "starts with this Python" if hooked else "does not start by itself: launch with accelerate launch -m adt_plugin"
    yield f"adt_plugin {__version__} {way}"
    for name in PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is missing"


def report(host: Path) -> Iterator[str]:
    """Yield the lines of the report on a work tree."""
    yield from surroundings()
    yield f"sd-scripts {version(host)}"
    for script, family in trainers(host):
        findings = examine(host, family)
        yield ""
        yield f"{script} ({family.name}): {'served' if all(f.found for f in findings) else 'NOT SERVED'}"
        for finding in findings:
            mark = "found  " if finding.found else "missing"
            yield f"  {mark}  {finding.seam} ({finding.purpose})  {finding.place}"
    yield ""
    yield f"not served: {', '.join(not_served(host)) or 'none'}"


def main(arguments: Sequence[str], prog: str = "adt doctor") -> None:
    """Print the report on the work tree that the arguments name.

    Args:
        arguments: the command line after the command's name.
        prog: what the help calls the command.

    Raises:
        SystemExit: 2 for wrong arguments, 1 for a folder that is no work tree or whose SD 1.5 trainer cannot be served.
    """
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument("folder", type=Path, help="work tree of sd-scripts")
    host = parser.parse_args(arguments).folder
    if not (host / SD.scripts[0]).is_file():
        raise SystemExit(f"adt_plugin: {host} has no {SD.scripts[0]}: give the folder of sd-scripts.")
    print("\n".join(report(host)))
    if not all(finding.found for finding in examine(host, SD)):
        raise SystemExit(1)
