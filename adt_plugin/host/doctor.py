"""Whether a work tree of sd-scripts has what the plugin hooks into.

The tree is read, not run: a trainer's seams are sought in the source of its modules, so that the answer needs none of the
host's requirements and no model.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adt_plugin.host.entry import ARGUMENTS, VERIFICATION
from adt_plugin.host.families import ACCELERATOR, FAMILIES, MASKING, METADATA, Family
from adt_plugin.host.seams import Seam

LINES = (
    ("library/args.py", "v0.11"),
    ("library/strategy_base.py", "v0.10"),
    ("library/train_util.py", "v0.9 or older"),
)
"""A file that tells the host's version, newest first."""


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

    def __str__(self) -> str:
        return f"{'found  ' if self.found else 'missing'}  {self.seam} ({self.purpose})  {self.place}"


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
    alternatives = [(ARGUMENTS,), (VERIFICATION,), (ACCELERATOR,), family.noising, (MASKING,), (METADATA,), family.vae]
    return [*(find_first(host, seams) for seams in alternatives), find_denoiser(host, family)]


def find_first(host: Path, seams: Sequence[Seam]) -> Finding:
    """Look for each of these seams until one is found; the last one's finding where none is."""
    findings = [find(host, seam) for seam in seams]
    return next((finding for finding in findings if finding.found), findings[-1])


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
    """Look for one of the denoiser's classes in the modules beneath `library`."""
    for path in sorted((host / "library").rglob("*.py")):
        for name, line in classes(path).items():
            if name in family.denoisers:
                return Finding(name, "the denoiser", f"{path.relative_to(host)}:{line}", True)
    return Finding(" or ".join(family.denoisers), "the denoiser", "not in library", False)


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file; an empty one where there is no file, or none that this Python can read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the host's own source, such as a doubtful escape sequence
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
