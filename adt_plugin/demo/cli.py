"""The command `demo` of `python -m adt_plugin`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from adt_plugin.demo.demo import SETTING, DemoOptions, DemoResults, run_demo
from adt_plugin.demo.variants import hurried

INTERRUPTED = 130  # the shell's status of a command that Ctrl-C ended
QUICK_SAMPLES = 20
QUICK_SETTING = replace(SETTING, samples=QUICK_SAMPLES)
LEGEND = (
    "FD: Fréchet distance to held-out digits after 5, 10 and 20 steps of DDIM, lower is better. A leading grid is Stable "
    "Diffusion's own DDIM; a trailing one begins at pure noise, as k-diffusion's samplers do. Well-formed: share of digits "
    "that a classifier takes for the asked one with certainty, higher is better. Recall: how much of real digits' variety is "
    "there. Novelty: distance to the nearest training image over that of held-out ones, 1 is as new."
)


def demo_main(argv: Sequence[str], prog: str = "adt demo") -> None:
    """Run `demo` with these arguments.

    Raises SystemExit: 2 for wrong options, 130 after Ctrl-C, 1 with one line where an extra is not installed.
    """
    given = _demo_parser(prog).parse_args(argv)
    results = DemoResults(_demo_options(given))
    with short_endings(given.out):
        run_demo(results)
    print(f"{results.table()}\n\n{LEGEND}")
    print(f"Written: results.md, results.json, samples.png and curves.png in {given.out.resolve()}")
    if given.quick:
        print("These figures mean nothing: --quick only shows that everything runs.")


def _demo_options(given: argparse.Namespace) -> DemoOptions:
    setting = replace(QUICK_SETTING if given.quick else SETTING, threads=given.threads)
    options = DemoOptions(given.out, given.seeds, setting=setting)
    if given.quick:
        options = replace(options, seconds=1.0, curve_samples=QUICK_SAMPLES, variants=tuple(map(hurried, options.variants)))
    return replace(options, seconds=given.seconds or options.seconds)


def _demo_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description="ADT in miniature: real digits, a small denoiser, minutes on a CPU.")
    parser.add_argument("--seeds", type=positive, default=1, help="fine-tunes of each kind (default: 1)")
    parser.add_argument("--seconds", type=duration, help="of tuning, the same for every run (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("adt_demo"), help="folder for tables and pictures (default: adt_demo)")
    add_shared_arguments(parser)
    return parser


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that the demo and its benchmark have in common."""
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="PyTorch's threads; networks this small gain nothing from a second (default: 1)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: shows that it runs, figures mean nothing"
    )


def duration(text: str) -> float:
    """Parse a number of seconds above 0."""
    if (seconds := float(text)) <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {seconds:g}")
    return seconds


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


@contextmanager
def short_endings(out: Path) -> Iterator[None]:
    """End the command with a line instead of a traceback, after Ctrl-C or where an extra is not installed."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was finished is in {out.resolve()}; pretrained networks are kept.")
        raise SystemExit(INTERRUPTED) from None
    except ImportError as error:
        raise SystemExit(f"adt_plugin: {error}") from error
