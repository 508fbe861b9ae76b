"""`python -m gpu.run OUT`: the parts of `gpu.parts`, cell by cell, each in a process of its own with a limit of time.

Every cell writes `OUT/part/cell.json` as soon as it has ended, and `OUT/summary.md` is written anew: a card that goes away
after ten minutes leaves ten minutes of results. What has ended is not run again, unless `--again` asks for what failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adt_plugin.core.run.files import write_atomically
from gpu.parts import PARTS, Cell, Setting
from tinyhost.site.sitecustomize import install as declare_torchvision

DONE, FAILED, TOO_LONG = "done", "failed", "too long"


def result_path(out: Path, part: str, cell: str) -> Path:
    """Where a cell's result lies."""
    return out / part / f"{cell.replace(' ', '-')}.json"


def read(path: Path) -> dict[str, Any] | None:
    """The result of a cell, or None where it has not ended."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run_here(setting: Setting, cell: Cell, path: Path) -> None:
    """Run a cell in this process and write what became of it; an error is a result."""
    began = time.monotonic()
    try:
        status: dict[str, Any] = {"status": DONE, "result": cell.run(setting)}
    except Exception as error:  # whatever goes wrong in one cell, the next one runs
        status = {"status": FAILED, "error": f"{type(error).__name__}: {error}"[-4000:]}
    save(path, status | {"seconds": round(time.monotonic() - began, 2)})


def run_apart(setting: Setting, part: str, cell: Cell, path: Path, arguments: Sequence[str], limit: float) -> None:
    """Run a cell in a process of its own, which a broken card or a full memory may end."""
    began = time.monotonic()
    command = [sys.executable, "-m", "gpu.run", *arguments, "--cell", part, cell.name]
    try:
        done = subprocess.run(command, timeout=limit, stdin=subprocess.DEVNULL)
        if read(path) is None:
            save(path, {"status": FAILED, "error": f"its process ended with {done.returncode}", "seconds": 0})
    except subprocess.TimeoutExpired:
        save(path, {"status": TOO_LONG, "seconds": round(time.monotonic() - began, 2)})


def save(path: Path, status: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(status, indent=1) + "\n")


def run_all(setting: Setting, parts: Sequence[str], arguments: Sequence[str], again: bool) -> None:
    """Run what has not ended yet, in the order of value."""
    for part in parts:
        left = PARTS[part].minutes * 60.0
        for cell in PARTS[part].cells(setting):
            path = result_path(setting.out, part, cell.name)
            before = read(path)
            if before is not None and (before["status"] == DONE or not again):
                continue
            path.unlink(missing_ok=True)
            if left <= 0:
                print(f"{part}: its {PARTS[part].minutes} minutes are over; call again to go on", flush=True)
                break
            began = time.monotonic()
            if setting.miniature:
                run_here(setting, cell, path)
            else:
                run_apart(setting, part, cell, path, arguments, left)
            left -= time.monotonic() - began
            print(f"{part}/{cell.name}: {(read(path) or {}).get('status')}", flush=True)
            write_atomically(setting.out / "summary.md", "\n".join(summary(setting)) + "\n")


def summary(setting: Setting) -> Iterator[str]:
    """Yield a line of a table for every cell that has ended."""
    yield from ("| part | cell | | seconds | found |", "|---|---|---|---|---|")
    for name, part in PARTS.items():
        for cell in part.cells(setting):
            found = read(result_path(setting.out, name, cell.name))
            if found is not None:
                said = found.get("error", "").strip().splitlines()[-1:] or [brief(found.get("result"))]
                yield f"| {name} | {cell.name} | {found['status']} | {found['seconds']} | {said[0].replace('|', '/')} |"


def brief(result: Any) -> str:
    """The figures of a result, without texts and lists."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures(result or {}))


def figures(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield all numbers by their names, those of a part behind its name."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", number) for inner, number in figures(value))
        elif isinstance(value, int | float):
            yield name, value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser("tests/gpu/run.sh", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the results, of the models and of the cost tables")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--miniature", action="store_true", help="everything at its smallest, in one process")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="what failed or took too long, too")
    parser.add_argument("--cell", nargs=2, metavar=("PART", "CELL"), help="one cell, in this process")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts with these arguments, or with the command line's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = parser().parse_args(arguments)
    unknown = [part for part in given.parts.split(",") if part not in PARTS]
    if unknown:
        raise SystemExit(f"--parts does not know {', '.join(unknown)}: there are {', '.join(PARTS)}.")
    declare_torchvision()  # where a CPU build of PyTorch has no matching one of torchvision
    setting = Setting(given.out.resolve(), given.device, given.miniature)
    setting.out.mkdir(parents=True, exist_ok=True)
    if given.cell:
        part, name = given.cell
        (cell,) = (cell for cell in PARTS[part].cells(setting) if cell.name == name)
        run_here(setting, cell, result_path(setting.out, part, name))
    else:
        run_all(setting, given.parts.split(","), arguments, given.again)


if __name__ == "__main__":
    main()
