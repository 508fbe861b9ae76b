"""`python -m benchmarks.cost`: docs/benchmarks/cost.md, counted on tensors without data and measured on this device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.run.files import write_atomically
from adt_plugin.cost.cli import add_measuring_arguments
from adt_plugin.cost.measure import device_name
from adt_plugin.cost.workbench import Workload
from benchmarks import DOCUMENTS, cost_sweep
from benchmarks.cost_tables import COUNTED, count, counted_cases, paragraphs
from benchmarks.store import CellStore


def write_tables(folder: Path, device: torch.device, repeats: int) -> None:
    """Count and measure what the folder's `cost.json` does not hold yet, and write `cost.md`.

    Args:
        device: whose measurements are added to those of other devices.
        repeats: of every timed call.
    """
    store = CellStore(folder / "cost.json", COUNTED)
    for workload, name, config in counted_cases():
        store.get_or_run(f"{workload}: {name}", (workload, cost_sweep.what_is_read(config)), partial(counted, workload, config))
    cost_sweep.run_sweep(CellStore(store.path, machine_name(device)), device, repeats)
    write_atomically(folder / "cost.md", "\n\n".join(paragraphs(store.results())) + "\n")


def counted(workload: Workload, config: ADTConfig) -> dict[str, Any]:
    """Count operations and bytes, as JSON values."""
    return asdict(count(workload, config))


def machine_name(device: torch.device) -> str:
    """Name the device and what ran on it."""
    return f"{device_name(device)}, PyTorch {torch.__version__.partition('+')[0]}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables with these arguments, or with the command line's."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.cost", description="The tables of docs/benchmarks/cost.md. Resumable."
    )
    parser.add_argument(
        "--out", type=Path, default=DOCUMENTS, help="folder of cost.json and cost.md (default: docs/benchmarks)"
    )
    add_measuring_arguments(parser)
    given = parser.parse_args(argv)
    write_tables(given.out, torch.device(given.device), given.repeats)
    print(f"Written: cost.md and cost.json in {given.out.resolve()}")


if __name__ == "__main__":
    main()
