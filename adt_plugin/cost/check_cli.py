"""The command `gpu-check` of `python -m adt_plugin`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import toml
import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.cost import tiny
from adt_plugin.cost.check import Finding, Subject, findings, verdict
from adt_plugin.cost.cli import add_run_arguments, options_of, with_config_file, workload_of
from adt_plugin.cost.measure import one_thread
from adt_plugin.cost.workbench import Workload
from adt_plugin.options import add_adt_arguments

SMALL = Workload("sd15", resolution=256)
"""What ways of computing are compared on; 6 GiB hold it in fp32."""

TINY = Workload(tiny.NAME, rank=4)


def check_main(argv: Sequence[str], prog: str = "adt gpu-check") -> None:
    """Run `gpu-check` with these arguments.

    Raises SystemExit: 1 where something is not ready or cannot be served, 2 for wrong options.
    """
    parser = check_parser(prog)
    try:
        given = with_config_file(parser, argv)
        found = run(subject_of(given), given.out)
    except (ConfigError, OSError, toml.TomlDecodeError) as error:
        raise SystemExit(f"adt_plugin: {error}") from error
    print(verdict(found))
    if not all(finding.good for finding in found):
        raise SystemExit(1)


def run(subject: Subject, out: Path | None) -> list[Finding]:
    """Run all parts, print each, and append it to a file of JSON lines if there is one."""
    found = []
    with one_thread(subject.device):
        for finding in findings(subject):
            found.append(finding)
            print(f"{'ok ' if finding.good else 'BAD'}  {finding.part}: {finding.said}", flush=True)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(finding)) + "\n")
    return found


def subject_of(given: argparse.Namespace) -> Subject:
    """Return what the arguments ask to check.

    Raises:
        ConfigError: as `workload_of` and `options_of`.
    """
    device, workload, config, small = device_of(given.device), workload_of(given), options_of(given), SMALL
    if given.mixed_precision == "fp16":  # what is counted as bf16 is measured as it is: older cards have no bf16
        workload = replace(workload, dtype="fp16")
    if given.tiny:
        workload, config, small = TINY, miniature(config), TINY
    return Subject(device, workload, config, small, given.max_train_steps, given.repeats)


def device_of(name: str) -> torch.device:
    """Return the device.

    Raises:
        ConfigError: a card is asked for, and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "not ready: PyTorch finds no CUDA device (no card, no driver, or a PyTorch that was built without CUDA); "
            "--device cpu --tiny tries the parts without one."
        )
    return torch.device(name)


def miniature(config: ADTConfig) -> ADTConfig:
    """Return the options at the tiny model's size."""
    return replace(config, **tiny.OPTIONS)


def check_parser(prog: str = "adt gpu-check") -> argparse.ArgumentParser:
    """Return a parser of the run's options, and of where and how it is checked."""
    parser = argparse.ArgumentParser(
        prog,
        description="Tell whether this card is ready for --adt, with random weights of true size: devices, precisions, "
        "offload, kept graphs, and what a step and a turn of your own run take.",
    )
    add_run_arguments(parser)
    checking = parser.add_argument_group("checking")
    checking.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what to check (default: cuda)")
    checking.add_argument("--repeats", type=int, default=2, help="of every timed call, the least counts (default: 2)")
    checking.add_argument(
        "--tiny", action="store_true", help="a tiny model in place of all others: tries the parts, tells nothing of the card"
    )
    checking.add_argument("--out", type=Path, help="append every finding to this file, a line of JSON each")
    add_adt_arguments(parser)
    return parser
