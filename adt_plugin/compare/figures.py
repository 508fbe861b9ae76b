"""The tables of figures as HTML: a value, its interval as a whisker, and whether it differs from the base for certain."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from adt_plugin.compare.scores import METRICS, Figure, Metric, Scope

ARROWS = {"lower": "↓", "higher": "↑", "": ""}
MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int, signed: bool = False) -> str:
    """Return a number for the page, with a true minus sign, and no sign before a zero."""
    value = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    text = f"{value:+.{digits}f}" if signed and value else f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def shown_metrics(scope: Scope) -> list[Metric]:
    """Return the metrics that any candidate has."""
    return [metric for metric in METRICS if any(metric.name in figures for figures in scope.figures.values())]


def figures_table(scope: Scope, hues: Mapping[str, str]) -> str:
    """Return the table with a row per candidate and a column per metric.

    Args:
        scope: what it is of.
        hues: the candidates' colours.
    """
    shown = shown_metrics(scope)
    head = "".join(f'<th scope="col">{escape(metric.title)} {ARROWS[metric.better]}</th>' for metric in shown)
    base = next(iter(scope.figures))
    rows = []
    for name, figures in scope.figures.items():
        differences = scope.differences.get((name, base), {})
        cells = "".join(
            f"<td>{_value(metric, figures[metric.name], scope, hues[name])}{_against_base(metric, differences, base)}</td>"
            if metric.name in figures
            else '<td class="soft">–</td>'
            for metric in shown
        )
        rows.append(f'<tr><th scope="row"><span class="dot" style="--hue:{hues[name]}"></span>{escape(name)}</th>{cells}</tr>')
    return _table(head, rows)


def _table(head: str, rows: list[str]) -> str:
    parts = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="figures">{parts}</table></div>'


def _value(metric: Metric, figure: Figure, scope: Scope, hue: str) -> str:
    found = [figures[metric.name] for figures in scope.figures.values() if metric.name in figures]
    text = f'<span class="value">{number(figure.value, metric.digits)}</span>{whisker(figure, found, hue)}'
    if figure.low is None or figure.high is None:
        return text
    return f'{text}<span class="range">{number(figure.low, metric.digits)} to {number(figure.high, metric.digits)}</span>'


def whisker(figure: Figure, all_figures: list[Figure], hue: str) -> str:
    """Return a small drawing of a value and its interval, on the scale of all candidates."""
    bounds = [bound for found in all_figures for bound in (found.low, found.value, found.high) if bound is not None]
    low, span = min(bounds), max(bounds) - min(bounds)
    if span == 0:
        return ""

    def place(value: float) -> str:
        return f"{4 + 84 * (value - low) / span:.1f}"

    line = ""
    if figure.low is not None and figure.high is not None:
        ends = f'x1="{place(figure.low)}" x2="{place(figure.high)}" y1="6" y2="6"'
        line = f'<line {ends} stroke="{hue}" stroke-width="3" opacity=".45"/>'
    axis = '<line x1="0" x2="92" y1="6" y2="6" stroke="currentColor" stroke-width="1" opacity=".13"/>'
    dot = f'<circle cx="{place(figure.value)}" cy="6" r="4" fill="{hue}"/>'
    return f'<svg viewBox="0 0 92 12" aria-hidden="true">{axis}{line}{dot}</svg>'


def _against_base(metric: Metric, differences: Mapping[str, Figure], base: str) -> str:
    """Return the difference from the base, in colour where chance does not explain it."""
    figure = differences.get(metric.name)
    if figure is None:
        return ""
    text = number(figure.value, metric.digits, signed=True)
    return f'<span class="against {judged(metric, figure)}">{text} vs {escape(base)}</span>'


def judged(metric: Metric, figure: Figure) -> str:
    """Return `better` or `worse` for a difference that chance does not explain; an empty string otherwise."""
    if not figure.certain or not metric.better:
        return ""
    return "better" if (figure.value < 0) == (metric.better == "lower") else "worse"


def against_table(scope: Scope, hues: Mapping[str, str]) -> str:
    """Return the table of the candidates against each other; empty where there is one beside the base."""
    base, *others = scope.figures
    pairs = [(name, other) for i, name in enumerate(others) for other in others[:i]]
    if not pairs:
        return ""
    shown = shown_metrics(scope)
    head = "".join(f'<th scope="col">{escape(metric.title)} {ARROWS[metric.better]}</th>' for metric in shown)
    rows = []
    for name, other in pairs:
        cells = "".join(f"<td>{_difference(metric, scope.differences[name, other])}</td>" for metric in shown)
        dot = f'<span class="dot" style="--hue:{hues[name]}"></span>'
        rows.append(f'<tr><th scope="row">{dot}{escape(name)} {MINUS} {escape(other)}</th>{cells}</tr>')
    note = "Candidate against candidate, on the same seeds and prompts. In colour where the interval leaves out 0."
    return f'<p class="soft small between">{note}</p>{_table(head, rows)}'


def _difference(metric: Metric, differences: Mapping[str, Figure]) -> str:
    figure = differences.get(metric.name)
    if figure is None:
        return '<span class="soft">–</span>'
    text = f'<span class="value {judged(metric, figure)}">{number(figure.value, metric.digits, signed=True)}</span>'
    if figure.low is None or figure.high is None:
        return text
    low, high = (number(bound, metric.digits, signed=True) for bound in (figure.low, figure.high))
    return f'{text}<span class="range">{low} to {high}</span>'


def meanings() -> str:
    """Return what each column means."""
    rows = "".join(f"<dt>{escape(metric.title)}</dt><dd>{escape(metric.meaning)}</dd>" for metric in METRICS)
    return f'<details class="columns"><summary>What the columns mean</summary><dl class="meaning">{rows}</dl></details>'
