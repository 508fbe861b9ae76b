"""About what a run will cost, said before it does: from counted parts, since nothing has been measured yet."""

from __future__ import annotations

import argparse

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import COUNTED, run_ratio
from adt_plugin.host.families import Family


def sentence(family: Family, config: ADTConfig, args: argparse.Namespace) -> str:
    """Return how many times as long as without `--adt` such a run takes."""
    counted = COUNTED[family.counted(args)]
    trains_all = not getattr(args, "network_module", None)
    parts = counted.parts(config, trains_all, bool(getattr(args, "gradient_checkpointing", False)))
    ratio = run_ratio(parts, config, args.max_train_steps)
    of = f"counted for {counted.title} at {counted.resolution} pixels"
    return f"The run will take about {ratio:.1f} times as long as without --adt ({of})."
