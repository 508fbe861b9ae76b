"""The command `cost` of `python -m adt_plugin`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import toml
import torch

from adt_plugin.core.builds import check_torchvision
from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.forecast import as_sampled, total, turn_shares
from adt_plugin.core.option import PREFIX
from adt_plugin.core.run.files import tensor_shapes
from adt_plugin.core.schedule import start_range
from adt_plugin.core.stopwatch import Stopwatch
from adt_plugin.cost.count import counted
from adt_plugin.cost.detect import detect
from adt_plugin.cost.measure import device_name, measure_base, measure_turn, one_thread, prepared
from adt_plugin.cost.models import MODELS
from adt_plugin.cost.report import Measurement, answers, report
from adt_plugin.cost.savings import savings
from adt_plugin.cost.workbench import Workload
from adt_plugin.options import add_adt_arguments, from_namespace, reject_unknown_keys

PRECISIONS = {"no": "fp32", "fp16": "bf16", "bf16": "bf16"}
"""`--mixed_precision` of the host -> what is counted: fp16 and bf16 are two bytes each."""

RANK, DOWN = 16, "lora_down.weight"
"""Rank of the LoRA where nothing tells it, and how the names end of the matrices that have it as their height."""

HOST_DEFAULTS: dict[str, Any] = {
    "train_batch_size": 1,
    "network_dim": 4,
    "gradient_checkpointing": False,
    "mixed_precision": "no",
    "max_train_steps": 1600,
}
"""Values of the host's keys that a `--config_file` leaves out."""

LIGHTER = (
    *("fp8_base", "fp8_base_unet", "fp8_scaled", "blocks_to_swap", "use_8bit_adam", "optimizer_type", "fused_backward_pass"),
    *("cpu_offload_checkpointing", "unsloth_offload_checkpointing"),
)
"""The host's keys with which a run needs less memory; `savings` counts some of them."""

UNCOUNTED = (*LIGHTER, "train_text_encoder", "torch_compile", "masked_loss")
"""The host's keys that change what a run needs, and that the count leaves out, but for those of `savings`; it knows AdamW."""


def cost_main(argv: Sequence[str], prog: str = "adt cost") -> None:
    """Run `cost` with these arguments.

    Raises SystemExit: 2 for wrong options, 1 with one sentence for values that cannot be served.
    """
    parser = cost_parser(prog)
    try:
        given = with_config_file(parser, argv)
        check_torchvision()
        print_report(given)
    except (ConfigError, OSError, toml.TomlDecodeError) as error:
        raise SystemExit(f"adt_plugin: {error}") from error


def print_report(given: argparse.Namespace) -> None:
    """Print the count, and beside it the measurement if it is asked for."""
    config, workload = options_of(given), workload_of(given)
    if not sys.stderr.isatty():  # a notebook, a log: no line that is written over
        print(f"counting {workload.size.title}, which can take a minute ...", file=sys.stderr, flush=True)
    parts, peaks = counted(workload, config, working)
    saved = savings(workload, asked(given))
    peaks, open_end = peaks.less(sum(saved.values())), bool(set(LIGHTER) & set(uncounted(given, saved)))
    measured = measurement(workload, config, torch.device(given.device), given.repeats) if given.measure else None
    steps = given.max_train_steps
    lines = [*report(workload, config, steps, parts, peaks, measured)]
    lines += answers(workload, config, steps, peaks, measured, sum(saved.values()), open_end)
    print("\n".join([*lines, *notes(given, workload, config, saved)]))


def asked(given: argparse.Namespace) -> dict[str, Any]:
    """Return the host's options of `UNCOUNTED` that the run sets, from the command line or the file."""
    found = {name: getattr(given, name, None) or given.keys.get(name) for name in UNCOUNTED}
    return {name: value for name, value in found.items() if value and str(value).lower() != "adamw"}


def uncounted(given: argparse.Namespace, saved: Mapping[str, int]) -> list[str]:
    """Return the names of those that the count leaves out."""
    return [name for name in asked(given) if name not in saved]


def options_of(given: argparse.Namespace) -> ADTConfig:
    """Return the plugin's options as a run of the model would have them.

    Raises:
        ConfigError: as `from_namespace`.
    """
    return as_sampled(from_namespace(given), given.model)


def working(part: str) -> None:
    """Say on the terminal what is being counted, in one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[Kcounting {part} ..." if part else "\r\033[K", end="", file=sys.stderr, flush=True)


def notes(given: argparse.Namespace, workload: Workload, config: ADTConfig, saved: Mapping[str, int]) -> Iterator[str]:
    """Yield what the count assumes of this run without having read it.

    Args:
        saved: what `savings` has counted.
    """
    if given.told:
        yield f"\nCounted as {workload.size.title}, told {given.told}; --model says otherwise."
    elif given.config_file and not given.named:
        yield f"\nThe file does not tell the model, so that it is counted as {workload.size.title}: say --model."
    if workload.rank and given.rank_unread:
        yield f"\nCounted at rank {workload.rank}: the file of network_weights cannot be read; --network_dim says its rank."
    if workload.rank == 0 and workload.dtype == "bf16" and not (given.full_bf16 or given.full_fp16):
        yield "\nCounted as with --full_bf16: without it weights, gradients and AdamW's moments take twice as much."
    if config.memory == "auto":
        yield "\n--adt_memory auto is counted as low; where it finds room on the card, a turn is as fast as with fast."
    if given.steps_unknown:
        yield (
            f"\nmax_train_epochs says no number of steps without the data set: counted as {given.max_train_steps}; "
            "--max_train_steps says how many."
        )
    if saved:
        parts = ", ".join(f"{name} ({size / 1e9:.1f} GB less)" for name, size in saved.items())
        where = "the count and the verdict, not in what is measured" if given.measure else "the peaks"
        yield f"\nIn {where}: {parts}. Not counted of them: their time, and what is on its way between the memories."
    if left_out := uncounted(given, saved):
        yield f"\nNot counted: {', '.join(left_out)}. All figures here are of the same run without."
    if given.dataset_config:
        yield "\n--dataset_config is not read: give its --resolution and --train_batch_size."


def measurement(workload: Workload, config: ADTConfig, device: torch.device, repeats: int) -> Measurement:
    """Measure one turn, from the middle of the allowed starts."""
    start = (sum(start_range(config)) + 1) // 2
    watch = Stopwatch(device, repeats, cpu_time=True)
    with one_thread(device):
        bench = prepared(workload, config, device)
        base = measure_base(bench, watch)
        turn = measure_turn(bench, watch, config, start)
    return Measurement(device_name(device), base, turn, start, total(list(turn_shares(base.parts, config, start))))


def workload_of(given: argparse.Namespace) -> Workload:
    """Return the run that the host's options describe.

    Raises:
        ConfigError: a resolution that is no number or pair of numbers, or no multiple of 64; a precision or a count that
            makes no sense.
    """
    if given.mixed_precision not in PRECISIONS:
        raise ConfigError(f"--mixed_precision must be one of {', '.join(PRECISIONS)}; got {given.mixed_precision!r}.")
    for name in ("train_batch_size", "network_dim", "max_train_steps", "repeats"):
        if getattr(given, name) < 1:
            raise ConfigError(f"--{name} must be at least 1; got {getattr(given, name)}.")
    return Workload(
        model=given.model or "sd15",
        resolution=side_of(given.resolution),
        batch=given.train_batch_size,
        rank=0 if given.full else given.network_dim,
        checkpointing=given.gradient_checkpointing,
        dtype=PRECISIONS[given.mixed_precision],
    )


def side_of(resolution: Any) -> int:
    """Return the side of the square that has as many pixels as `512` or `768,512`, to the nearest multiple of 64 for a pair."""
    try:
        sides = [int(part) for part in (resolution if isinstance(resolution, list) else str(resolution).split(","))]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 0:
        raise ConfigError(f"--resolution needs a number or two with a comma, such as 512 or 768,512; got {resolution!r}.")
    return sides[0] if len(sides) == 1 else round((sides[0] * sides[1]) ** 0.5 / 64) * 64


def with_config_file(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments, with those of a `--config_file` as defaults, read as the host reads it: sections have no meaning.

    Raises:
        ConfigError: an unknown `adt_*` key.
    """
    given, keys = parser.parse_args(argv), {}
    steps = parser.parse_args(argv, argparse.Namespace(max_train_steps=None)).max_train_steps
    rank_unread = False
    if given.config_file is not None:
        keys = flattened(toml.loads(given.config_file.read_text(encoding="utf-8")))
        reject_unknown_keys(keys)
        known = {name: value for name, value in keys.items() if name in given or name.startswith(PREFIX)}
        if keys.get("dim_from_weights"):
            rank = rank_of(keys)
            rank_unread = rank is None
            known["network_dim"] = rank or known.get("network_dim", RANK)
        parser.set_defaults(**HOST_DEFAULTS | {"full": "network_module" not in keys} | known)
        given = parser.parse_args(argv)
    given.keys, given.rank_unread = keys, rank_unread
    given.steps_unknown = steps is None and bool(keys.get("max_train_epochs"))  # with which the host counts its steps anew
    given.named = given.model is not None
    given.model, given.told = (given.model, "") if given.named else detect(keys, given.config_file) or ("sd15", "")
    return given


def rank_of(keys: Mapping[str, Any]) -> int | None:
    """Return the largest rank in the file of `network_weights`; None where it is not there, or no LoRA in safetensors."""
    shapes = tensor_shapes(Path(str(keys.get("network_weights") or "")))
    return max((shape[0] for name, shape in shapes.items() if name.endswith(DOWN) and shape), default=None)


def flattened(sections: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of all sections together."""
    return {k: v for key, value in sections.items() for k, v in (value.items() if isinstance(value, dict) else [(key, value)])}


def cost_parser(prog: str = "adt cost") -> argparse.ArgumentParser:
    """Return a parser of the host's options by its own names, those of the plugin, and how to measure."""
    parser = argparse.ArgumentParser(
        prog,
        description="What a training run costs with --adt: counted on models of true size, and measured with --measure.",
    )
    add_run_arguments(parser)
    add_lighter_arguments(parser.add_argument_group("what makes a run lighter, in sd-scripts' own options"))
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--measure", action="store_true", help="do the steps with random weights of true size, too")
    add_measuring_arguments(measuring)
    add_adt_arguments(parser)
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, and the host's options that say what a run is, to a parser."""
    run = parser.add_argument_group("the run, in sd-scripts' own options")
    run.add_argument("--model", choices=MODELS, help="default: told by the --config_file, else sd15")
    run.add_argument("--config_file", type=Path, help="TOML of a run; options beside it win")
    run.add_argument("--resolution", default="0", help="pixels, such as 512 or 768,512 (default: the model's own)")
    run.add_argument("--train_batch_size", type=int, default=1, help="default: 1")
    run.add_argument("--network_dim", type=int, default=RANK, help=f"rank of the LoRA (default: {RANK})")
    run.add_argument("--full", action="store_true", help="full fine-tuning instead of a LoRA")
    run.add_argument("--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=True, help="default: on")
    run.add_argument("--mixed_precision", choices=PRECISIONS, default="bf16", help="default: bf16")
    run.add_argument("--max_train_steps", type=int, default=2000, help="default: 2000")
    for name in ("full_bf16", "full_fp16"):
        run.add_argument(f"--{name}", action="store_true", help="full fine-tuning in two bytes, which is what is counted")
    run.add_argument("--dataset_config", help="not read: give --resolution and --train_batch_size")


def add_lighter_arguments(lighter: Any) -> None:
    """Add the host's options that `savings` counts to a group of a parser."""
    lighter.add_argument("--fp8_base", action="store_true", help="frozen weights in one byte")
    lighter.add_argument("--blocks_to_swap", type=int, default=0, help="blocks off the card (default: 0)")
    lighter.add_argument("--optimizer_type", default="AdamW", help="AdamW or AdamW8bit is counted (default: AdamW)")


def add_measuring_arguments(parser: Any) -> None:
    """Add the options of how to measure to a parser or one of its groups."""
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to measure (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=2, help="of every timed call, the least counts (default: 2)")
