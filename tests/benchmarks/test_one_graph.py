"""The whole unroll in one graph takes the memory that it is said to take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.cost.count import counted_peaks
from adt_plugin.cost.measure import peak_bytes, prepared
from adt_plugin.cost.workbench import Workload
from benchmarks.one_graph import one_graph_step

CPU = torch.device("cpu")


def test_one_graph_for_the_whole_unroll_grows_with_k(workload: Workload, config: ADTConfig) -> None:
    bench = prepared(workload, config, CPU)
    one, four = (peak_bytes(bench, lambda k=k: one_graph_step(bench, replace(config, grad_steps=k), 4)) for k in (1, 4))
    graph = counted_peaks(workload, config).graph
    assert four - one == pytest.approx(3 * graph, rel=0.2)
