"""`python scarce.py RESULT SCRIPT ARGUMENTS...`: a real trainer with `--adt` on a device that says its memory is limited.

`ADT_SCARCE` in the environment says where PyTorch's error is raised: `unroll` for as long as decoder and backbone stay on the
device, `replay` half way through the third true turn, nowhere if it is not set. The result is a JSON list: turns made before
each rehearsal, and the shape of its latents.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from observing import run_observed

from adt_plugin.core import turn as turns
from adt_plugin.core.out_of_memory import OUT_OF_MEMORY
from adt_plugin.core.run import rehearsal
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host import session

REHEARSED: list[tuple[int, tuple[int, ...]]] = []
SAID = "CUDA out of memory. Tried to allocate 1.00 GiB."


def limit_the_memory(result: Path) -> None:
    """Rehearse on this device, too, and take notes of it."""
    headroom, rehearse = session.Headroom, rehearsal.rehearse

    def noted(turn: AdversarialTurn, *args: Any, **kwargs: Any) -> None:
        REHEARSED.append((turn.turns, tuple(args[2].shape)))
        result.write_text(json.dumps(REHEARSED))
        rehearse(turn, *args, **kwargs)

    session.Headroom = lambda turn: headroom(turn, lambda device: True)
    rehearsal.rehearse = noted


def run_out_in_the_unroll() -> None:
    walk = AdversarialTurn._walk

    def scarce(turn: AdversarialTurn, *args: Any) -> Any:
        if not turn.offload.modules:
            raise OUT_OF_MEMORY(SAID)
        return walk(turn, *args)

    AdversarialTurn._walk = scarce


def run_out_in_the_replay() -> None:
    replay, made = turns.replay, []

    def scarce(denoiser: Any, path: Any, gradients: dict[int, Any], backward: Any) -> None:
        made.append(1)
        if len(made) == 2 + len(REHEARSED):  # the warm-up's turn has no replay
            position = min(gradients)
            replay(denoiser, path, {position: gradients[position]}, backward)
            raise OUT_OF_MEMORY(SAID)
        replay(denoiser, path, gradients, backward)

    turns.replay = scarce


def install(result: Path) -> None:
    """Limit the memory, and let it run out where `ADT_SCARCE` says."""
    limit_the_memory(result)
    {"unroll": run_out_in_the_unroll, "replay": run_out_in_the_replay}.get(os.environ.get("ADT_SCARCE", ""), lambda: None)()


if __name__ == "__main__":
    run_observed(install)
