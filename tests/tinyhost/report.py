"""The closing words on host tests: how many ran, and why the others did not."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

RAN = ("passed", "failed")


def host_summary(stats: Mapping[str, Iterable[pytest.TestReport]]) -> list[str]:
    """One line on the host tests that ran, and how many were skipped, by reason; empty if the session had no host test."""
    counts = {category: len(host_reports(stats, category)) for category in (*RAN, "error")}
    reasons = Counter(skip_reason(report) for report in host_reports(stats, "skipped"))
    ran = sum(counts[category] for category in RAN)
    lines = [f"{count_tests(number)} skipped: {reason}" for reason, number in reasons.items()]
    if ran or counts["error"]:
        lines.insert(0, f"{count_tests(ran)} ran: " + ", ".join(f"{n} {category}" for category, n in counts.items() if n))
        if not reasons:
            lines.append("0 host tests skipped")
    return lines


def host_reports(stats: Mapping[str, Iterable[pytest.TestReport]], category: str) -> list[pytest.TestReport]:
    """The reports of one category whose test carries the `host` marker."""
    return [report for report in stats.get(category, ()) if "host" in getattr(report, "keywords", ())]


def skip_reason(report: pytest.TestReport) -> str:
    """The reason given to `pytest.skip`."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def count_tests(number: int) -> str:
    """`1 host test`, `2 host tests`."""
    return f"{number} host test{'' if number == 1 else 's'}"


def write_cells(path: Path | None, stats: Mapping[str, Iterable[pytest.TestReport]]) -> None:
    """Append what every test with the property `compatibility` found, as one JSON object a line."""
    if path is None:
        return
    date = datetime.date.today().isoformat()
    with path.open("a", encoding="utf-8") as file:
        for outcome in (*RAN, "skipped"):
            for report in host_reports(stats, outcome):
                cell = dict(report.user_properties).get("compatibility")
                if cell is not None:
                    reason = {"reason": skip_reason(report)} if outcome == "skipped" else {}
                    file.write(json.dumps(cell | {"outcome": outcome, "date": date} | reason) + "\n")
