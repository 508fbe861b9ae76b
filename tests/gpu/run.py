"""`python -m gpu.run OUT`: the parts of `gpu.parts`, cell by cell, each in a process of its own with a limit of time.

Every cell writes `OUT/part/cell.json` as soon as it has ended, and `OUT/summary.md` and `OUT/card.md` are written anew: a card
that goes away after ten minutes leaves ten minutes of results. What has ended is not run again, unless `--again` asks for what
failed. With `--minutes` a cell that is not expected to end in time is passed over for shorter ones.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adt_plugin.core.run.files import write_atomically
from gpu.parts import FIRST, PARTS, Cell, Setting
from gpu.tables import write_tables
from tinyhost.run import end_group
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
    save(path, status | {"seconds": since(began)})


def run_apart(part: str, cell: Cell, path: Path, arguments: Sequence[str], limit: float) -> None:
    """Run a cell in a process of its own, which a broken card or a full memory may end; what it has started ends with it."""
    began = time.monotonic()
    command = [sys.executable, "-m", "gpu.run", *arguments, "--limit", f"{limit:.0f}", "--cell", part, cell.name]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait(limit)
        if read(path) is None:
            save(path, {"status": FAILED, "error": f"its process ended with {code}", "seconds": since(began)})
    except subprocess.TimeoutExpired:
        save(path, {"status": TOO_LONG, "seconds": since(began)})
    finally:
        end_group(process)  # a host that goes on would hold the card


def since(began: float) -> float:
    """Seconds from then on."""
    return round(time.monotonic() - began, 2)


def save(path: Path, status: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(status, indent=1) + "\n")


def run_all(setting: Setting, parts: Sequence[str], arguments: Sequence[str], again: bool) -> None:
    """Run what has not ended yet, in the order of value, as far as the call's time and those of the parts go."""
    left, ends = {part: PARTS[part].minutes * 60.0 for part in parts}, time.monotonic() + setting.limit
    for part, cell in in_order(setting, parts):
        path = result_path(setting.out, part, cell.name)
        before = read(path)
        if before is not None and (before["status"] == DONE or not again):
            continue
        began = time.monotonic()
        passed = passed_over(part, cell, left[part], ends - began)
        if passed:
            print(f"{part}/{cell.name}: {passed}", flush=True)
            continue
        path.unlink(missing_ok=True)
        if setting.miniature:
            run_here(setting, cell, path)
        else:
            run_apart(part, cell, path, arguments, min(left[part], ends - began))
        left[part] -= time.monotonic() - began
        print(f"{part}/{cell.name}: {(read(path) or {}).get('status')}", flush=True)
        write_found(setting)


def in_order(setting: Setting, parts: Sequence[str]) -> Iterator[tuple[str, Cell]]:
    """Yield the cells of these parts, those of `FIRST` before all others."""
    cells = {(part, cell.name): cell for part in parts for cell in PARTS[part].cells(setting)}
    order = [*(key for key in FIRST if key in cells), *(key for key in cells if key not in FIRST)]
    yield from ((part, cells[part, name]) for part, name in order)


def passed_over(part: str, cell: Cell, of_part: float, of_call: float) -> str:
    """Say why a cell is not begun with so many seconds left; nothing where it is."""
    if of_part <= 0:
        return f"the {PARTS[part].minutes} minutes of its part are over; call again to go on"
    if of_call < cell.minutes * 60:
        return f"takes about {cell.minutes:g} minutes, which are more than are left"
    return ""


def write_found(setting: Setting) -> None:
    """Write what has been found so far, for the eye and for docs/benchmarks."""
    write_atomically(setting.out / "summary.md", "\n".join(summary(setting)) + "\n")
    write_tables(setting.out, {part: found(setting, part) for part in PARTS})


def found(setting: Setting, part: str) -> dict[str, dict[str, Any]]:
    """The results of a part's cells, by their names."""
    read_all = {cell.name: read(result_path(setting.out, part, cell.name)) for cell in PARTS[part].cells(setting)}
    return {name: result for name, result in read_all.items() if result is not None}


def summary(setting: Setting) -> Iterator[str]:
    """Yield a line of a table for every cell that has ended."""
    yield from ("| part | cell | | seconds | found |", "|---|---|---|---|---|")
    for part in PARTS:
        for name, cell in found(setting, part).items():
            said = cell.get("error", "").strip().splitlines()[-1:] or [brief(cell.get("result"))]
            yield f"| {part} | {name} | {cell['status']} | {cell['seconds']} | {said[0].replace('|', '/')} |"


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


def plan(setting: Setting, parts: Sequence[str]) -> Iterator[str]:
    """Yield a line for every cell in its order: the minutes that it is expected to take, and all up to it."""
    total = 0.0
    for part, cell in in_order(setting, parts):
        total += cell.minutes
        yield f"{total:6.1f}  {cell.minutes:4.1f}  {part}/{cell.name}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser("tests/gpu/run.sh", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the results and tables")
    parser.add_argument("--scratch", type=Path, help="folder of the models and of what the host writes, 40 GB (default: OUT)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="that this call may take (default: what the parts may)")
    parser.add_argument(
        "--plan", action="store_true", help="say what is run in which order, and how long it is expected to take"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--miniature", action="store_true", help="everything at its smallest, in one process")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="what failed or took too long, too")
    parser.add_argument("--cell", nargs=2, metavar=("PART", "CELL"), help="one cell, in this process")
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)  # seconds of the cell
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts with these arguments, or with the command line's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = parser().parse_args(arguments)
    unknown = [part for part in given.parts.split(",") if part not in PARTS]
    if unknown:
        raise SystemExit(f"--parts does not know {', '.join(unknown)}: there are {', '.join(PARTS)}.")
    parts, scratch = given.parts.split(","), given.scratch and given.scratch.resolve()
    setting = Setting(given.out.resolve(), given.device, given.miniature, scratch, given.limit or given.minutes * 60)
    if given.plan:
        print("\n".join(plan(setting, parts)))
        return
    declare_torchvision()  # where a CPU build of PyTorch has no matching one of torchvision
    setting.out.mkdir(parents=True, exist_ok=True)
    if given.cell:
        part, name = given.cell
        (cell,) = (cell for cell in PARTS[part].cells(setting) if cell.name == name)
        run_here(setting, cell, result_path(setting.out, part, name))
    else:
        run_all(setting, parts, arguments, given.again)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that what has been started ends, too
    main()
