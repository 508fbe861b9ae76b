"""`python swapping.py RESULT SCRIPT ARGUMENTS...`: a real trainer with `--adt` whose blocks swap between two emulated devices.

On a CPU alone the host's offloader would alias what it swaps. Here weights are copied, as between devices, by the host's own
rule for CUDA; where each weight lies is written down; and a block that is called, or pulled back, on the CPU raises.

The result is one JSON object: `moves`, how many blocks were swapped; `forward_only`, how often that mode was chosen.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from observing import run_observed

NOTES = {"moves": 0, "forward_only": 0}


def weighted(block: Any) -> dict[str, Any]:
    return {name: module for name, module in block.named_modules() if getattr(module, "weight", None) is not None}


def emulate(utils: Any) -> None:
    """Two devices in place of one."""
    away: set[int] = set()

    def swap(device: Any, to_cpu: Any, to_device: Any) -> None:
        NOTES["moves"] += 1
        leaving = weighted(to_cpu)
        for name, module in weighted(to_device).items():
            other = leaving.get(name)
            if other is None or other.weight.shape != module.weight.shape:
                away.discard(id(module))
                continue
            assert id(other) not in away and id(module) in away, "swapped in the wrong order"
            on_device, on_cpu = other.weight.data, module.weight.data
            other.weight.data = on_device.clone()
            on_device.copy_(on_cpu)
            module.weight.data = on_device
            away.add(id(other))
            away.discard(id(module))

    def at_home(block: Any, *args: Any) -> None:
        lost = [name for name, module in weighted(block).items() if id(module) in away]
        assert not lost, f"weights on the CPU: {lost}"

    class Emulated(utils.ModelOffloader):  # type: ignore[misc, name-defined]
        def __init__(self, blocks: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(blocks, *args, **kwargs)
            for block in blocks:
                block.register_forward_pre_hook(at_home)
                block.register_full_backward_pre_hook(at_home)

        def prepare_block_devices_before_forward(self, blocks: Any) -> None:
            super().prepare_block_devices_before_forward(blocks)
            for index, block in enumerate(blocks):
                for module in weighted(block).values():
                    (away.add if index >= self.num_blocks - self.blocks_to_swap else away.discard)(id(module))

        def set_forward_only(self, forward_only: bool) -> None:
            super().set_forward_only(forward_only)
            NOTES["forward_only"] += forward_only and self.blocks_to_swap > 0

    utils.swap_weight_devices_no_cuda, utils.ModelOffloader = swap, Emulated


if __name__ == "__main__":
    result = run_observed(lambda _: emulate(importlib.import_module("library.custom_offloading_utils")))
    result.write_text(json.dumps(NOTES))
