"""`python compiling.py RESULT SCRIPT ARGUMENTS...`: a real trainer with `--adt` whose graphs are counted.

The result is a JSON list: how many graphs PyTorch has compiled when each turn ends. A code object that is compiled more often
than its limit, and would run without being compiled from then on, ends the run.
"""

from __future__ import annotations

import json
from typing import Any

import torch._dynamo
from observing import run_observed

from adt_plugin.core.turn import AdversarialTurn

GRAPHS: list[int] = []


def count() -> None:
    """A number for every turn."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    turn = AdversarialTurn.__call__

    def counted(self: AdversarialTurn, *args: Any, **kwargs: Any) -> Any:
        report = turn(self, *args, **kwargs)
        GRAPHS.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return report

    AdversarialTurn.__call__ = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    result = run_observed(lambda _: count())
    result.write_text(json.dumps(GRAPHS))
