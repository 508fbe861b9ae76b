"""docs/compatibility.md from the cells of real runs, which docs/benchmarks/compatibility.json keeps.

    python -m pytest tests/integration --compatibility=cells.jsonl
    python tests/compatibility.py cells.jsonl

What a new run found takes the place of what was kept. `tests/environments.py` does both in every environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from adt_plugin.core.run.files import write_atomically
from adt_plugin.cost.models import MODELS
from adt_plugin.cost.report import GIB
from adt_plugin.cost.workbench import Workload
from adt_plugin.host.checks import OTHER_TRAINERS, REFUSED, REFUSED_WITH_DEEPSPEED
from adt_plugin.host.families import FAMILIES, Family
from benchmarks import DOCUMENTS
from benchmarks.cost_tables import COUNTED
from benchmarks.store import CellStore
from tinyhost.site.sitecustomize import install as patch_imports

Cell = dict[str, Any]
Column = tuple[str, str]
"""A host's commit and an environment."""

CELLS = DOCUMENTS / "compatibility.json"
PAGE = DOCUMENTS.parent / "compatibility.md"
REQUIREMENTS = Path(__file__).with_name("environments")
"""Of every environment but the project's own, whose name is `PROJECT`."""

PROJECT = "project"
BF16 = 2
"""Bytes of a weight."""

LACKING = "not in this version"
WORDS = {"failed": "FAILS", "passed": "works", "missing": "not installed", "skipped": LACKING}
"""By outcome of a test; the first one counts."""

OF_A_COLUMN, OF_A_CELL = ("commit", "environment", "versions"), ("trainer", "flag", "found", "date")

NOT_RUN = {
    "`flux_train_network.py` on the newest packages": "fails in the plain host: with transformers 5, CLIP-L stays on the meta "
    "device",
    "`--torch_compile` with inductor on a U-Net": "compiles for more than 25 minutes on the tests' CPU; eager is tested, and "
    "Anima's `--compile` with inductor, too",
    "`--full_fp16`": "accelerate refuses fp16 on a CPU; `--mixed_precision fp16` runs with a CPU's loss scaler in its place",
    "LoRA with several processes": "fails in the plain host on a CPU, but for `--deepspeed`; docs/reliability.md has what was "
    "tested",
    "`--deepspeed` on a GPU": "needs one; on a CPU it runs with gloo, and with fp16 where the tests let a CPU have it",
    "`--deepspeed` with a state at the end of a run, and with `train_db.py`": "fail in the plain host; states on the way are "
    "saved and resumed",
    "`--xformers`, `--mem_eff_attn`, sage attention": "need a GPU",
    "bitsandbytes' other optimizers": "not tried; AdamW8bit and PagedAdamW8bit run on a CPU",
    "`--cpu_offload_checkpointing`": "needs a GPU: the host itself fails without CUDA",
    "`--fp8_scaled` (HunyuanImage), `--fp8_base` on SD 1.x and SDXL": "fail in the plain host on a CPU",
    "`--mixed_precision bf16` with HunyuanImage": "fails in the plain host on a CPU",
    "`algo=boft` of LyCORIS 3.2, which the kohya_ss GUI installs": "fails in the plain host; works with 4.1",
    "FLUX with transformers 5": "fails in the plain host, which then loads CLIP-L under names that it no longer has",
    "real weights of any model": "the tests know sizes, conventions and directions, not pictures",
}
"""What no test ran, and why."""

INTRODUCTION = """# Compatibility

Every cell below is a run of sd-scripts' own, unmodified script with `--adt` on a random tiny model on a CPU: two steps that
end, save finite weights with the plugin's metadata, and add a finite, non-zero adversarial gradient. `tests/compatibility.py`
wrote this page from those runs. Besides, for every family the tests compare scale, shift, sign and time with the host itself
(`tests/integration/test_directions.py`): the decode of the host's own latents, and an unroll with the oracle that makes the
host's own loss zero, which comes back to the image to 1e-3 from every start.

`adt doctor -v FOLDER` says the same of the copy that you have: which trainers, which seams, where.
"""

MEMORY = """
*Memory* is what a card needs at least, counted in GiB on models of true size ([cost.md](cost.md), which also says what is not
counted, such as text encoders): one image a step at the model's own resolution, gradient checkpointing, bf16, a LoRA of rank
16 or all weights with AdamW's moments in bf16, the defaults of `--adt`. *Swapped* is the same less the weights of the most
blocks that `--blocks_to_swap` takes to the CPU. What is not counted here, `adt cost --model NAME` counts in a minute.
"""

FORKS = """
A fork's trainer is taken for the family whose file name it has. What the plugin hooks into is found by name, or the run ends
with a sentence that says what is missing. `--adt_cfg_scale` is refused where a fork embeds prompts in a way of its own.
"""


# Cells


def kept() -> list[Cell]:
    """The cells that are kept."""
    stored = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else []
    return [
        {name: column[name] for name in OF_A_COLUMN} | dict(zip(OF_A_CELL, cell, strict=True))
        for column in stored
        for cell in column["cells"]
    ]


def keep(cells: Iterable[Cell]) -> None:
    """Write them, column by column, each with the versions of its newest cell."""
    by_column: dict[Column, list[Cell]] = {}
    for cell in sorted(cells, key=key):
        by_column.setdefault(column_of(cell), []).append(cell)
    lines = []
    for column in by_column.values():
        newest = max(column, key=lambda cell: cell["date"])
        found = ",\n  ".join(json.dumps([cell[name] for name in OF_A_CELL]) for cell in column)
        lines.append(f'{json.dumps({name: newest[name] for name in OF_A_COLUMN})[:-1]}, "cells": [\n  {found}\n ]}}')
    write_atomically(CELLS, "[" + ",\n ".join(lines) + "]\n")


def read(line: str) -> Cell:
    """A cell as the tests write it, with the page's word for what its run found."""
    cell = json.loads(line)
    return cell | {"found": WORDS["missing" if "not installed" in cell.get("reason", "") else cell["outcome"]]}


def key(cell: Cell) -> tuple[str, ...]:
    """What a cell is about."""
    return (*column_of(cell), cell["trainer"], cell["flag"])


def column_of(cell: Cell) -> Column:
    """Where a cell was run."""
    return cell["commit"], cell["environment"]


def merged(old: Iterable[Cell], new: Iterable[Cell]) -> list[Cell]:
    """The old cells, and in their place or beside them the new ones; one that failed in any of its tests has failed."""
    found: dict[tuple[str, ...], Cell] = {}
    for cell in sorted(new, key=lambda cell: list(WORDS.values()).index(cell["found"])):
        found.setdefault(key(cell), cell)
    return list(({key(cell): cell for cell in old} | found).values())


def is_fork(cell: Cell) -> bool:
    """Whether it was run on a fork, whose name stands before the commit."""
    return not cell["commit"].partition(" ")[2].startswith("(")


def columns(cells: Iterable[Cell]) -> list[Column]:
    """All of them, the oldest host first, the project's environment before others."""
    found = {column_of(cell) for cell in cells}
    return sorted(found, key=lambda column: (column[0].rpartition("(")[2], column[1] != PROJECT, column[1]))


def verdict(cells: Iterable[Cell], column: Column, trainer: str, flag: str) -> str:
    """What the run of a cell found; what a commit lacks in one environment it lacks in every other."""
    commit, environment = column
    found = {c["environment"]: c["found"] for c in cells if (c["commit"], c["trainer"], c["flag"]) == (commit, trainer, flag)}
    return found.get(environment) or (LACKING if LACKING in found.values() else "not run")


# Memory


def memory(family: Family, script: str) -> tuple[str, str]:
    """What was counted for a trainer, in GiB, and what is left of it where blocks are swapped."""
    lora = script.endswith("train_network.py")
    model = family.counted(None)
    workload = Workload(model, MODELS[model].resolution, 1, 16 if lora else 0, True, "bf16")
    stored = CellStore(DOCUMENTS / "cost.json").results().get(COUNTED, {}).get(f"{workload}: defaults")
    if stored is None:
        return "not counted", ""
    peak = stored["peaks"]["turn"]
    swapped = swapped_bytes(model) if lora else 0
    return f"{peak / GIB:.1f}", f"{(peak - swapped) / GIB:.1f}" if swapped else ""


def swapped_bytes(model: str) -> int:
    """The bf16 weights of the most blocks that sd-scripts swaps: all of each kind but two, and none of a U-Net's."""
    with torch.device("meta"):
        network = MODELS[model].build()
    stacks = [list(blocks) for name, blocks in network.named_children() if name.endswith("transformer_blocks")]
    return sum(parameter.numel() for blocks in stacks for block in blocks[2:] for parameter in block.parameters()) * BF16


# The page


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def environments(cells: Sequence[Cell]) -> Iterator[str]:
    """Every environment: what it is, and what its newest cell was run with."""
    names = sorted({cell["environment"] for cell in cells}, key=lambda name: (name != PROJECT, name))
    newest = [max((cell for cell in cells if cell["environment"] == name), key=lambda cell: cell["date"]) for name in names]
    packages = list(newest[0]["versions"])
    rows = ([name, what_it_is(name), *cell["versions"].values()] for name, cell in zip(names, newest, strict=True))
    yield from table(["environment", "what it is", *packages], rows)


def what_it_is(environment: str) -> str:
    """The first line of an environment's requirements."""
    if environment == PROJECT:
        return "what `.ci/run` installs"
    return requirements_of(environment).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def requirements_of(environment: str) -> Path:
    """The file of an environment's requirements; `gui, Python 3.10` has those of `gui`."""
    return REQUIREMENTS / f"{environment.partition(',')[0]}.txt"


def head(column: Column) -> str:
    """Of a column of cells."""
    return "<br>".join(column)


def trainers(cells: Sequence[Cell]) -> Iterator[str]:
    """Trainers against hosts and environments."""
    known = columns(cell for cell in cells if not cell["flag"])
    rows = (
        [f"`{script}`", family.name, *memory(family, script), *(verdict(cells, column, script, "") for column in known)]
        for family in FAMILIES
        for script in family.scripts
    )
    yield from table(["trainer", "family", "memory", "swapped", *map(head, known)], rows)


def combinations(cells: Sequence[Cell]) -> Iterator[str]:
    """What was combined, against hosts and environments."""
    known = columns(cells)
    order = [script for family in FAMILIES for script in family.scripts]
    combined = sorted({(order.index(cell["trainer"]), cell["flag"]) for cell in cells})
    rows = (
        [f"`{order[place]}`", f"`{typed(flag)}`", *(verdict(cells, column, order[place], flag) for column in known)]
        for place, flag in combined
    )
    yield from table(["trainer", "with", *map(head, known)], rows)


def typed(flag: str) -> str:
    """As a reader would type it: a word with a comma in quotes, which PowerShell wants."""
    return " ".join(f'"{word}"' if "," in word and flag.startswith("--") else word for word in flag.split(" "))


def forks(cells: Sequence[Cell]) -> Iterator[str]:
    """Forks against their trainers."""
    rows = ([cell["commit"], f"`{cell['trainer']}`", cell["found"]] for cell in sorted(cells, key=key))
    yield from table(["fork", "trainer", "in the project's environment"], rows)


def refusals() -> Iterator[Sequence[str]]:
    """Every refused option of the host, and why; some of them in one value alone."""
    yield from ([f"`--{name}`", reason] for name, reason in REFUSED.items())
    yield from ([f"`--{name} {value}`", reason] for (name, value), reason in REFUSED_WITH_DEEPSPEED.items())


def page(cells: Sequence[Cell]) -> Iterator[str]:
    """The whole document."""
    dates = sorted({cell["date"] for cell in cells})
    of_host, of_forks = ([cell for cell in cells if is_fork(cell) == of_fork] for of_fork in (False, True))
    combined = [cell for cell in of_host if cell["flag"]]
    yield INTRODUCTION
    days = " and ".join(filter(None, (", ".join(dates[:-1]), dates[-1])))
    yield f"Run on {days}. A column is a commit of the host in one environment.\n"
    yield "## Environments\n"
    yield from environments(of_host)
    yield "\n## Trainers"
    yield MEMORY
    yield from trainers(of_host)
    yield f"\nRefused by name: {', '.join(f'`{name}`' for name in OTHER_TRAINERS)}.\n"
    yield "## Combinations\n"
    yield from combinations([cell for cell in combined if cell["environment"] == PROJECT])
    yield "\n### In other environments\n"
    yield from combinations([cell for cell in combined if cell["environment"] != PROJECT])
    yield "\n## Forks"
    yield FORKS
    yield from forks(of_forks)
    yield "\n## Refused\n"
    yield "Each ends the run in one sentence, before models are loaded.\n"
    yield from table(["option", "because it"], refusals())
    yield "\n## Not run\n"
    yield from table(["what", "why"], ([what, why] for what, why in NOT_RUN.items()))


def take_in(paths: Iterable[Path]) -> None:
    """Keep the cells of these files, and write the page of all that are kept."""
    new = [read(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    keep(merged(kept(), new))
    write_atomically(PAGE, "\n".join(page(kept())) + "\n")


if __name__ == "__main__":
    patch_imports()  # diffusers imports torchvision
    take_in(map(Path, sys.argv[1:]))
