"""What `python -m adt_plugin cost` says of one run: every part of a turn, the whole run, the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts, mean_turn, run_ratio, total
from adt_plugin.core.run.monitor import CAPTION_HEIGHT, CAPTIONS, MAX_PAIRS
from adt_plugin.core.run.story import duration
from adt_plugin.core.run.strip import LINE, PANEL_LINES, SIDE
from adt_plugin.core.schedule import TurnSchedule
from adt_plugin.cost.count import Peaks
from adt_plugin.cost.measure import Base, Measured
from adt_plugin.cost.workbench import Workload

GIB, TERA = 2**30, 1e12
NAMES, COLUMN = 58, 24

CARDS = (8, 12, 16, 24)
"""GB of the cards that people have."""

ROOM = 1.4
"""GB of a card that are left for what is not counted: driver, allocator, scratch space."""

ROW = 600
"""Bytes of a turn's row, about."""


@dataclass(frozen=True)
class Measurement:
    """A workload on a device.

    Attributes:
        device: its name.
        base: the host's step and the parts.
        turn: a whole turn.
        start: the steps that this turn unrolled.
        expected: seconds of the turn's parts, each measured alone.
    """

    device: str
    base: Base
    turn: Measured
    start: int
    expected: float


def report(
    workload: Workload, config: ADTConfig, steps: int, parts: Parts, peaks: Peaks, measured: Measurement | None = None
) -> Iterator[str]:
    """Yield the lines of the report.

    Args:
        steps: optimizer steps of the run.
        parts: counted, in floating-point operations.
    """
    yield f"{workload}\n"
    devices = [measured.device] if measured else []
    yield line("", ["counted", *(f"measured, {device}" for device in devices)])
    columns = [time_column(parts, config, steps, f"{parts.forward / TERA:.2f} TFLOP")]
    if measured:
        base = measured.base
        columns.append(time_column(base.parts, config, steps, f"{base.parts.forward:.3g} s"))
    for row in zip(time_labels(parts, config, steps), *columns, strict=True):
        yield line(row[0], row[1:])
    yield ""
    memory = [memory_column(peaks.plain, peaks.of(config), peaks.backbone)]
    if measured:
        memory.append(memory_column(measured.base.peak, measured.turn.peak, measured.base.backbone))
    labels = ("peak memory of sd-scripts' step", "  with a turn", "  over the first and the backbone together")
    for row in zip(labels, *memory, strict=True):
        yield line(row[0], row[1:])
    if measured:
        yield f"\nThe turn measured as a whole, from step {measured.start}: {measured.turn.seconds:.3g} s, " + (
            f"{measured.turn.seconds / measured.expected:.2f} times the sum of its parts."
        )


def answers(
    workload: Workload,
    config: ADTConfig,
    steps: int,
    peaks: Peaks,
    measured: Measurement | None = None,
    saved: int = 0,
    open_end: bool = False,
) -> Iterator[str]:
    """Yield what a person wants to know: which card, how long, how much of the disk.

    Args:
        steps: optimizer steps of the run.
        saved: bytes that the host's options save, which are in the counted peaks and not in the measured ones.
        open_end: the run has options with which it needs less than is counted, so that nothing is said to be too small.
    """
    peak = measured.turn.peak - saved if measured else peaks.of(config)
    too_small = "perhaps" if open_end else "no"
    fits = ", ".join(f"{card} GB {'yes' if peak <= (card - ROOM) * 1e9 else too_small}" for card in CARDS)
    yield f"\nfits a card of: {fits} ({ROOM} GB left for driver, allocator and scratch space; text encoders come on top)"
    if measured:
        plain = steps * measured.base.seconds
        added = (run_ratio(measured.base.parts, config, steps) - 1) * steps * measured.base.parts.step
        yield f"this run: {duration(plain + added)} with --adt, {duration(plain)} without, on {measured.device}"
    rows, pictures = rows_and_pictures(workload, config, steps)
    yield f"on the disk: {peaks.state / 1e6:.0f} MB more in each saved state, {rows / 1e6:.1f} MB of rows and at most " + (
        f"{pictures / 1e6:.0f} MB of pictures for the run; LoRA and checkpoint are as large as without --adt"
    )


def rows_and_pictures(workload: Workload, config: ADTConfig, steps: int) -> tuple[int, int]:
    """Return the bytes that a run's rows take, and the most that its pictures take: those of their pixels."""
    turns = TurnSchedule.from_config(config, steps).count(steps).total
    if not config.pictures_every:
        return turns * ROW, 0
    window = min(config.decode_crop or workload.pixels, workload.pixels)
    pairs = min(workload.batch, MAX_PAIRS) * window * (2 * window + CAPTIONS * CAPTION_HEIGHT)
    count = turns // config.pictures_every
    panels = count + 2  # the training image, and one before the first turn
    return turns * ROW, 3 * (count * pairs + panels * SIDE * (SIDE + PANEL_LINES * LINE))


def time_labels(parts: Parts, config: ADTConfig, steps: int) -> list[str]:
    """Return the names of `time_column`'s lines."""
    shares = [f"  {share.times:4.3g} x {share.name}" for share in mean_turn(parts, config)]
    run = f"a run of {steps} steps, a turn every {config.every}, over the plain one"
    return ["one denoiser forward, f", "sd-scripts' step", "a turn, on average over its starts", *shares, run]


def time_column(parts: Parts, config: ADTConfig, steps: int, forward: str) -> list[str]:
    """Return what everything costs in units of a forward."""
    shares = mean_turn(parts, config)
    costs = [parts.step, total(shares), *(share.total for share in shares)]
    return [forward, *(f"{cost / parts.forward:.2f} f" for cost in costs), f"{run_ratio(parts, config, steps):.2f} x"]


def memory_column(plain: int, turn: int, backbone: int) -> list[str]:
    """Return the peaks, and the ratio that has a target of 1.10."""
    return [f"{plain / GIB:.2f} GiB", f"{turn / GIB:.2f} GiB", f"{turn / (plain + backbone):.2f} x"]


def line(name: str, values: Sequence[str]) -> str:
    """Format one line of the table."""
    return f"{name:<{NAMES}}{''.join(f'  {value:>{COLUMN}}' for value in values)}".rstrip()
