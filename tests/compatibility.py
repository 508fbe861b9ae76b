"""docs/compatibility.md from the cells of real runs.

    python -m pytest tests/integration/test_trainers.py --compatibility cells.jsonl
    python tests/compatibility.py cells.jsonl > docs/compatibility.md

A cell that no test ran says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adt_plugin.host.checks import OTHER_TRAINERS, REFUSED
from adt_plugin.host.families import FAMILIES

Cell = dict[str, Any]

WORDS = {"passed": "works", "failed": "FAILS", "skipped": "not in this version"}

NOT_RUN = {
    "`--full_fp16`": "accelerate refuses fp16 on a CPU; `--mixed_precision fp16` runs with a CPU's loss scaler in its place",
    "LoRA with several processes": "fails in the plain host on a CPU; docs/reliability.md has what was tested",
    "`--xformers`, `--mem_eff_attn`, sage attention": "need a GPU",
    "paged optimizers": "not tried; bitsandbytes' AdamW8bit runs on a CPU",
    "`--cpu_offload_checkpointing`": "needs a GPU: the host itself fails without CUDA",
    "`--fp8_scaled` (HunyuanImage), `--fp8_base` on SD 1.x and SDXL": "fail in the plain host on a CPU",
    "`--mixed_precision bf16` with HunyuanImage": "fails in the plain host on a CPU",
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


def hosts(cells: Iterable[Cell]) -> list[tuple[str, str]]:
    """(name, commit) of every host, oldest first."""
    return sorted({(cell["host"], cell["commit"]) for cell in cells}, key=lambda host: host[1].rpartition("(")[2])


def verdict(cells: Iterable[Cell], host: tuple[str, str], trainer: str, flag: str) -> str:
    """What the last run of a cell found."""
    found = [c for c in cells if (c["host"], c["commit"], c["trainer"], c["flag"]) == (*host, trainer, flag)]
    return WORDS[found[-1]["outcome"]] if found else "not run"


def table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def trainers(cells: list[Cell]) -> Iterator[str]:
    """Trainers against host versions."""
    known = hosts(cells)
    yield from table(
        ["trainer", "family", *(commit for _, commit in known)],
        (
            [f"`{script}`", family.name, *(verdict(cells, host, script, "") for host in known)]
            for family in FAMILIES
            for script in family.scripts
        ),
    )


def flags(cells: list[Cell]) -> Iterator[str]:
    """What was combined, against host versions."""
    known = hosts(cells)
    combined = dict.fromkeys((cell["trainer"], cell["flag"]) for cell in cells if cell["flag"])
    order = [script for family in FAMILIES for script in family.scripts]
    rows = (
        [f"`{trainer}`", f"`{flag}`", *(verdict(cells, host, trainer, flag) for host in known)]
        for trainer, flag in sorted(combined, key=lambda pair: (order.index(pair[0]), pair[1]))
    )
    yield from table(["trainer", "with", *(commit for _, commit in known)], rows)


def page(cells: list[Cell]) -> Iterator[str]:
    """The whole document."""
    dates = sorted({cell["date"] for cell in cells})
    yield INTRODUCTION
    yield f"Run on {' and '.join(dates)}; the columns are commits of the host.\n"
    yield "## Trainers\n"
    yield from trainers(cells)
    yield f"\nRefused by name: {', '.join(f'`{name}`' for name in OTHER_TRAINERS)}.\n"
    yield "## Combinations\n"
    yield from flags(cells)
    yield "\n## Refused\n"
    yield "Each ends the run in one sentence, before models are loaded.\n"
    yield from table(["option", "because it"], ([f"`--{name}`", reason] for name, reason in REFUSED.items()))
    yield "\n## Not run\n"
    yield from table(["what", "why"], ([what, why] for what, why in NOT_RUN.items()))


def main(paths: list[str]) -> None:
    """Print the page of the cells in these files."""
    cells = [json.loads(line) for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines()]
    print("\n".join(page(cells)))


if __name__ == "__main__":
    main(sys.argv[1:])
