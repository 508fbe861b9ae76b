"""What `cost` measures and `gpu-check` tries, on the card: the host's step and a turn on the workbench."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from accelerator.device import watched
from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts
from adt_plugin.cost.measure import always_from, prepared
from adt_plugin.cost.workbench import Workload
from tiny_cost import config, tiny_models, workload  # noqa: F401

TURN_WAITS = {"turn.py:_all_finite": 1, "report.py:on_the_cpu": 1}


QUICK = {("low", "fp32"), ("low", "bf16"), ("low", "fp16"), ("fast", "bf16"), ("joined", "fp16")}


@pytest.mark.parametrize(
    ("memory", "dtype"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
        for pair in product(("low", "fast", "joined"), ("fp32", "bf16", "fp16"))
    ],
)
def test_a_step_with_a_turn_waits_twice_in_every_precision(
    card: torch.device, workload: Workload, config: ADTConfig, memory: str, dtype: str  # noqa: F811
) -> None:  # fmt: skip
    options = always_from(replace(config, memory=memory), 2)
    bench = prepared(replace(workload, dtype=dtype), options, card)
    turn = bench.turn(options)
    with watched() as traffic:
        bench.adt_step(turn)
    assert turn.turns == 1 and traffic.waits == TURN_WAITS
    assert all(parameter.device == card and parameter.isfinite().all() for parameter in bench.trained)


def test_offloaded_weights_travel_once_and_every_part_runs(
    card: torch.device, workload: Workload, config: ADTConfig  # noqa: F811
) -> None:  # fmt: skip
    options = always_from(replace(config, offload=True), 2)
    bench = prepared(workload, options, card)
    for part in Parts.__dataclass_fields__:
        with watched() as traffic:
            getattr(bench, part)()
        assert not traffic.waits and not traffic.copies, part
    turn = bench.turn(options)
    bench.place(options)
    away = sum(tensor.numel() * tensor.element_size() for tensor in bench.visual_tensors())
    with watched() as traffic:
        bench.adt_step(turn)
    assert traffic.to_card["offload.py:fetched"] == away and traffic.waits == TURN_WAITS
    assert {tensor.device.type for tensor in bench.visual_tensors()} == {"cpu"}
