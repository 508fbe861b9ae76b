"""Operations and peak memory of a step, counted without doing it: fake tensors have shapes and no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import Parts
from adt_plugin.core.schedule import count_grad_steps
from adt_plugin.cost.live import LiveBytes
from adt_plugin.cost.workbench import Workbench, Workload, nbytes


@dataclass(frozen=True)
class Peaks:
    """Bytes at their highest within a step: weights, gradients, AdamW's moments in the weights' precision, activations.

    Not counted: text encoders, the VAE's encoder, what the driver, the allocator's rounding, the optimizer's and kernels'
    scratch space take.

    Attributes:
        plain: of a step without `--adt`.
        turn: of a step with a turn, at any K and m.
        backbone: of the frozen backbone's weights.
        graph: what one more trained step takes where its graph is kept (`--adt_memory fast`, or a whole unroll in one graph).
        joined: as `turn`, with one backward pass for it and the diffusion loss, at the K of the options that were counted; 0 in
            counts that were stored before there was one.
        state: of the plugin's part of a saved state: heads, their moments, the features of the last turns.
    """

    plain: int
    turn: int
    backbone: int
    graph: int
    joined: int = 0
    state: int = 0

    def keeping(self, graphs: int) -> int:
        """Return the bytes of a step with a turn that keeps so many graphs."""
        return self.turn + graphs * self.graph

    def less(self, saved: int) -> Peaks:
        """Return the peaks of a run that needs so many bytes less at every moment."""
        return replace(self, plain=self.plain - saved, turn=self.turn - saved, joined=self.joined - saved)

    def of(self, config: ADTConfig) -> int:
        """Return the bytes of a step with a turn under the options that were counted."""
        return self.joined if config.memory == "joined" else self.keeping(kept_graphs(config))

    def ratio(self, graphs: int = 0) -> float:
        """Return that peak over the one of a plain step and the backbone together."""
        return self.keeping(graphs) / (self.plain + self.backbone)


def kept_graphs(config: ADTConfig) -> int:
    """Return how many graphs through the denoiser a run with these options holds at once, beside the one at work.

    `--adt_memory auto` counts as low, which it is until it has seen that there is room. A joined turn keeps none beside the
    decoder's work.
    """
    return trained_calls(config) if config.memory == "fast" else 0


def trained_calls(config: ADTConfig) -> int:
    """Return the most denoiser calls that carry gradient in a turn."""
    return count_grad_steps(config, config.steps)


def counted_dtype(config: ADTConfig) -> torch.dtype:
    """Return the precision of decoder and backbone; `auto` counts as on a GPU that has bf16."""
    return torch.float32 if config.decode_dtype == "fp32" else torch.bfloat16


Progress = Callable[[str], object]
"""Told what is being counted; an empty string when all is."""


def counted(workload: Workload, config: ADTConfig, progress: Progress = lambda part: None) -> tuple[Parts, Peaks]:
    """Count operations and peaks on the same models, whose building takes a good part of the time."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with LiveBytes() as live:
            bench = fake_bench(workload, config, progress)
            peaks = _peaks(bench, live, progress)
        parts = _parts(bench, progress)
    return parts, peaks


def counted_parts(workload: Workload, config: ADTConfig, progress: Progress = lambda part: None) -> Parts:
    """Count the floating-point operations of every part (matrix products, convolutions, attention); a multiply-add is two."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _parts(fake_bench(workload, config, progress), progress)


def counted_peaks(workload: Workload, config: ADTConfig, progress: Progress = lambda part: None) -> Peaks:
    """Count the peak bytes of a step without a turn and with one."""
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        return _peaks(fake_bench(workload, config, progress), live, progress)


def _parts(bench: Workbench, progress: Progress) -> Parts:
    counts = {}
    for number, name in enumerate(Parts.__dataclass_fields__, 1):
        progress(f"operations, part {number} of {len(Parts.__dataclass_fields__)}: {name.replace('_', ' ')}")
        counts[name] = flops_of(getattr(bench, name))
    progress("")
    return Parts(**counts)


def _peaks(bench: Workbench, live: LiveBytes, progress: Progress) -> Peaks:
    """Count on a bench that was built while `live` was watching."""
    resident = live.now

    def peak_of(number: int, name: str, part: Callable[[], object]) -> int:
        progress(f"memory, part {number} of 4: {name}")
        return live.peak_of(part) - resident

    plain, replay = peak_of(1, "sd-scripts' step", bench.step), peak_of(2, "a trained step", bench.step)
    supervision = peak_of(3, "decoder and discriminator", bench.supervise)
    progress("memory, part 4 of 4: a kept graph")
    before = live.now
    kept = bench.forward_with_graph()
    graph = live.now - before
    del kept
    moments, heads = 2 * nbytes(bench.trained), 3 * nbytes(bench.head_tensors())  # with the moments of the heads' AdamW
    visual, backbone = nbytes(bench.visual_tensors()), nbytes(bench.backbone_tensors())
    host = resident - bench.own_bytes() + moments
    progress("")
    config = bench.config
    away = visual if config.offload else 0  # during the host's step and the replays
    all_graphs = plain + trained_calls(config) * graph  # the host's own, and those of the steps, run again
    judging = supervision - nbytes(bench.trained) + graph  # beside the host's graph, before there is any gradient
    return Peaks(
        plain=host + plain,
        turn=host + heads + visual + max(replay - away, supervision),
        backbone=backbone,
        graph=graph,
        joined=host + heads + visual + max(all_graphs - away, judging),
        state=heads + bench.history_bytes(),
    )


def fake_bench(workload: Workload, config: ADTConfig, progress: Progress = lambda part: None) -> Workbench:
    """Build a workbench inside a fake tensor mode, as in the middle of a run: no value is ever asked for."""
    progress(f"the weights of {workload.size.title}")
    bench = Workbench(workload, config, torch.device("cpu"), counted_dtype(config))
    bench.settle()
    return bench


def flops_of(part: Callable[[], object]) -> float:
    """Count the floating-point operations of a call."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # PyTorch's own table has the GPU's alone
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=attention)
    with counter:
        part()
    return float(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return flop_counter.sdpa_backward_flop_count(gradient, query, key, value)
