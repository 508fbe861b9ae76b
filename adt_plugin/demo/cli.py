"""The commands `demo` and `bench` of `python -m adt_plugin`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from adt_plugin.demo.base import Recipe, default_cache
from adt_plugin.demo.bench import BenchOptions, BenchResults, benchmark, hurried_sections, run_bench
from adt_plugin.demo.demo import DemoOptions, DemoResults, run_demo
from adt_plugin.demo.study import Setting
from adt_plugin.demo.variants import hurried

INTERRUPTED = 130  # the shell's status of a command that Ctrl-C ended
CURVE_SECONDS = (11.0, 22.0, 45.0)
BENCH_NOISE_SEED = 2  # not the demo's, which people look at while they change things
QUICK_SETTING = Setting(Recipe(degraded_steps=20, clean_steps=40, classifier_steps=20, backbone_steps=20), samples=200)
LEGEND = (
    "FD: Fréchet distance to held-out digits after 5, 10 and 20 sampler steps, lower is better. "
    "Pixel FD: the same of raw pixels. Precision and recall: higher is better."
)


def demo_main(argv: Sequence[str], prog: str = "adt demo") -> None:
    """Run `demo` with these arguments.

    Raises SystemExit: 2 for wrong options, 130 after Ctrl-C, 1 with one line where an extra is not installed.
    """
    given = _demo_parser(prog).parse_args(argv)
    results = DemoResults(_demo_options(given))
    with _short_endings(given.out):
        run_demo(results)
    print(f"{results.table()}\n\n{LEGEND}")
    print(f"Written: results.md, results.json, samples.png and curves.png in {given.out.resolve()}")
    if given.quick:
        print("These figures mean nothing: --quick only shows that everything runs.")


def bench_main(argv: Sequence[str]) -> None:
    """Run `bench` with these arguments.

    Raises SystemExit: as `demo_main`.
    """
    given = _bench_parser().parse_args(argv)
    with _short_endings(given.out):
        run_bench(BenchResults(_bench_options(given)))
    print(f"Written: benchmark.md, benchmark.json and its pictures in {given.out.resolve()}")


def _demo_options(given: argparse.Namespace) -> DemoOptions:
    options = DemoOptions(given.out, given.cache, given.seeds, setting=Setting(threads=given.threads))
    if given.quick:
        quick = replace(QUICK_SETTING, threads=given.threads)
        options = replace(options, setting=quick, steps=8, curve_samples=100, variants=tuple(map(hurried, options.variants)))
    return replace(options, steps=given.steps or options.steps)


def _bench_options(given: argparse.Namespace) -> BenchOptions:
    if given.quick:
        tables = hurried_sections(benchmark(steps=4, seconds=0.2, curve=(0.1, 0.2)))
    else:
        tables = benchmark(given.steps, given.seconds, CURVE_SECONDS)
    tables = tuple(table for table in tables if given.only in (None, table.title.lower()))
    setting = QUICK_SETTING if given.quick else Setting()
    setting = replace(setting, split=given.split, threads=given.threads, noise_seed=BENCH_NOISE_SEED)
    return BenchOptions(given.out, given.cache, tables, given.seeds, setting)


def _demo_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description="ADT in miniature: real digits, a small denoiser, minutes on a CPU.")
    parser.add_argument("--seeds", type=_positive, default=1, help="fine-tunes of each kind (default: 1)")
    parser.add_argument("--steps", type=_positive, help="optimizer steps of each fine-tune (default: 300)")
    parser.add_argument("--out", type=Path, default=Path("adt_demo"), help="folder for tables and pictures (default: adt_demo)")
    _add_shared_arguments(parser)
    return parser


def _bench_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m adt_plugin bench", description="The miniature's benchmark: seeds, ablations, wall time. Resumable."
    )
    parser.add_argument("--seeds", type=_positive, default=3, help="fine-tunes of each kind (default: 3)")
    parser.add_argument("--steps", type=_positive, default=300, help="optimizer steps at equal steps (default: 300)")
    parser.add_argument("--seconds", type=float, default=45.0, help="seconds of tuning at equal wall time (default: 45)")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks"), help="folder for tables (default: docs/benchmarks)"
    )
    parser.add_argument(
        "--split", choices=("heldout", "validation"), default="heldout", help="validation to choose settings (default: heldout)"
    )
    titles = [table.title.lower() for table in benchmark(1, 1.0, CURVE_SECONDS)]
    parser.add_argument("--only", choices=titles, help="one table instead of all")
    _add_shared_arguments(parser)
    return parser


def _add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=_positive,
        default=1,
        help="PyTorch's threads; networks this small gain nothing from a second (default: 1)",
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder for the pretrained networks (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: shows that it runs, figures mean nothing"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


@contextmanager
def _short_endings(out: Path) -> Iterator[None]:
    """Ctrl-C, or an extra that is not installed, ends the command with a line, not with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was finished is in {out.resolve()}; pretrained networks are kept.")
        raise SystemExit(INTERRUPTED) from None
    except ImportError as error:
        raise SystemExit(f"adt_plugin: {error}") from error
