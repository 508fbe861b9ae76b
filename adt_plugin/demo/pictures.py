"""PNG files: samples of all runs side by side, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME = -0.6  # between tiles: dark, but not the digits' background
Curve = Sequence[tuple[float, float]]
"""Points (x, y)."""

COLOURS = {
    "base": "#7f7f7f", "plain": "#1f77b4", "frozen heads at": "#bcbd22", "frozen heads": "#2ca02c",
    "ADT, ": "#ff7f0e", "ADT at": "#9467bd", "ADT": "#d62728",
}  # fmt: skip
"""Of runs whose names begin so, in every picture, the first that fits; others take matplotlib's cycle."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no display and no global state of matplotlib's.

    Raises ImportError with the command to run where matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'adt_plugin[demo]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def sample_rows(path: Path, panels: Sequence[tuple[str, Mapping[str, Tensor]]]) -> None:
    """Draw one panel per entry, below each other: in it one row per name, of images `(N, C, H, W)` in [-1, 1].

    C is 1 or 3. What stands in one column came from the same noise.
    """
    widest = max(len(images) for _, rows in panels for images in rows.values())
    figure = new_figure(10.5, sum(0.45 + 9.6 / widest * len(rows) for _, rows in panels))
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [len(rows) for _, rows in panels]})
    for axis, (title, rows) in zip(axes.flat, panels, strict=True):
        count = min(len(images) for images in rows.values())
        drawn = tile(torch.cat([images[:count] for images in rows.values()]), count)
        axis.imshow((drawn.clamp(-1, 1) + 1).numpy() / 2, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        height = drawn.shape[0] / len(rows)
        axis.set_yticks([height * (i + 0.5) for i in range(len(rows))], list(rows))
        axis.set_xticks([])
        axis.tick_params(length=0, labelsize=9)
        axis.set_title(title, fontsize=10, loc="left")
        axis.spines[:].set_visible(False)
    save(figure, path)


def tile(images: Tensor, columns: int) -> Tensor:
    """Lay images `(N, C, H, W)` out as one `(rows * (H + 1), columns * (W + 1), C)`, a dark line below and right of each.

    What does not fill a row is left out.
    """
    rows = len(images) // columns
    framed = F.pad(images[: rows * columns], (0, 1, 0, 1), value=FRAME)
    channels, height, width = framed.shape[1:]
    laid_out = framed.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return laid_out.reshape(rows * height, columns * width, channels)


def curves(path: Path, *rows: Mapping[tuple[str, str], Mapping[str, Sequence[Curve]]]) -> None:
    """Draw rows of panels, one per (label of y, label of x); a distance gets a logarithmic axis, a share one from 0 to 1.

    A panel maps names to one curve per seed, all with the same number of points: drawn as their mean, point by point,
    with a band from lowest to highest.
    """
    columns = max(map(len, rows))
    figure = new_figure(5.2 * columns, 3.8 * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False).flat
    for axis, ((y_label, x_label), lines) in zip(axes, (panel for row in rows for panel in row.items()), strict=True):
        for name, seeds in lines.items():
            _draw(axis, name, seeds)
        axis.set(xlabel=x_label, ylabel=y_label)
        if "distance" in y_label:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
        else:
            axis.set_ylim(0, 1)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    save(figure, path)


def bars(path: Path, panels: Mapping[str, tuple[Sequence[str], Mapping[str, Sequence[float]], float]]) -> None:
    """Draw a panel of bars for each title: groups by name, in each a bar of every run, and a line at what is best.

    Args:
        panels: title -> names of the groups, run -> its value in each group, and where the line is.
    """
    groups_each = [len(groups) for groups, _, _ in panels.values()]
    figure = new_figure(1.15 * sum(groups_each), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=groups_each)[0]
    for axis, (title, (groups, runs, best)) in zip(axes, panels.items(), strict=True):
        width = 0.8 / len(runs)
        for place, (name, heights) in enumerate(runs.items()):
            x = [group + width * (place - (len(runs) - 1) / 2) for group in range(len(groups))]
            drawn = axis.bar(x, heights, width * 0.92, label=name, color=_colour(name))
            axis.bar_label(drawn, fmt="%.1f", fontsize=7)
        axis.axhline(best, color="black", linewidth=1, linestyle=":", label="training images")
        axis.set_ylim(0, 1.3 * axis.get_ylim()[1])  # room for the legend
        axis.set_xticks(range(len(groups)), groups, fontsize=8)
        axis.set_title(title, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False)
    save(figure, path)


def _colour(name: str) -> str | None:
    """Return the colour of a run in every picture; None takes the next of matplotlib's."""
    return next((colour for begin, colour in COLOURS.items() if name.startswith(begin)), None)


def _draw(axis: Axes, name: str, seeds: Sequence[Curve]) -> None:
    points = np.array(seeds)  # (seeds, points, 2)
    x, y = points.mean(axis=0).T
    (line,) = axis.plot(x, y, marker="o", markersize=4, label=name, color=_colour(name))
    axis.fill_between(x, points[..., 1].min(axis=0), points[..., 1].max(axis=0), alpha=0.2, color=line.get_color())


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
