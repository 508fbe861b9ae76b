"""About what a run will cost, and whether it is long enough, said before it does: nothing has been measured of it yet."""

from __future__ import annotations

import argparse

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import COUNTED, run_ratio
from adt_plugin.core.schedule import TurnCount
from adt_plugin.host.families import Family

NOTHING, SOMETHING = 120, 480
"""Images, over all turns that train the model, that changed nothing on the small Stable Diffusion, and that did."""


def sentence(family: Family, config: ADTConfig, args: argparse.Namespace) -> str:
    """Return how many times as long as without `--adt` such a run takes."""
    counted = COUNTED[family.counted(args)]
    trains_all = not getattr(args, "network_module", None)
    parts = counted.parts(config, trains_all, bool(getattr(args, "gradient_checkpointing", False)))
    ratio = run_ratio(parts, config, args.max_train_steps)
    of = f"counted for {counted.title} at {counted.resolution} pixels"
    return f"The run will take about {ratio:.1f} times as long as without --adt ({of})."


def of_images(count: TurnCount, batch: int) -> str:
    """Return what to say of a run whose turns see few images; empty for a longer one.

    Args:
        batch: images of a turn, over all processes.
    """
    images = count.adversarial * batch
    if not 0 < images < SOMETHING:
        return ""
    return (
        f"The turns that train the model see {images} images in all: on the benchmarks' small Stable Diffusion {NOTHING} "
        f"changed nothing, and {SOMETHING} did. --gradient_accumulation_steps, --train_batch_size or more steps give more."
    )
