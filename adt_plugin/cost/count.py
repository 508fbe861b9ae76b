"""Operations and peak memory of a step, counted without doing it: fake tensors have shapes and no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter

from adt_plugin.config import ADTConfig
from adt_plugin.cost.formula import Parts
from adt_plugin.cost.live import LiveBytes
from adt_plugin.cost.workbench import Workbench, Workload, nbytes


@dataclass(frozen=True)
class Peaks:
    """Bytes at their highest within a step: weights, gradients, AdamW's moments in the weights' precision, activations.

    Not counted: text encoders, the VAE's encoder, what the driver, the allocator's rounding and kernels' scratch space take.

    Attributes:
        plain: of a step without `--adt`.
        adt: of a step with a turn.
        backbone: of the frozen backbone's weights.
    """

    plain: int
    adt: int
    backbone: int

    @property
    def ratio(self) -> float:
        """The plugin's peak over that of a plain step beside the backbone."""
        return self.adt / (self.plain + self.backbone)


def counted_parts(workload: Workload, config: ADTConfig) -> Parts:
    """Floating-point operations of every part: of matrix products, convolutions and attention; a multiply-add is two."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        bench = fake_bench(workload, config)
        return Parts(**{name: flops_of(getattr(bench, name)) for name in Parts.__dataclass_fields__})


def counted_peaks(workload: Workload, config: ADTConfig) -> Peaks:
    """Peak bytes of a step without a turn and with one, whatever the number of unrolled steps."""
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        bench = fake_bench(workload, config)
        moments = 2 * nbytes(bench.trained)
        visual = nbytes(bench.visual_tensors())
        ours = visual + nbytes(bench.head_tensors())  # the heads' own moments are as many bytes again, twice
        resident = live.now

        def peak_of(part: Callable[[], object]) -> int:
            """Above what is resident; the gradient that stays from the step before is part of it."""
            live.restart()
            part()
            return live.peak - resident

        plain = peak_of(bench.step)
        replay = peak_of(bench.step)
        supervision = peak_of(bench.supervise)
        if config.memory == "fast":
            before = live.now
            graph = bench.forward_with_graph()
            kept = (live.now - before) * min(config.grad_steps, config.steps) * (2 if config.cfg_scale > 1 else 1)
            del graph
            replay, supervision = replay + kept, supervision + kept
        outside = visual if config.offload else 0
        resident += moments + 2 * nbytes(bench.head_tensors())
        plain_resident = resident - ours - 2 * nbytes(bench.head_tensors())
        return Peaks(
            plain=plain_resident + plain,
            adt=resident + max(plain - outside, replay - outside, supervision),
            backbone=nbytes(bench.backbone_tensors()),
        )


def fake_bench(workload: Workload, config: ADTConfig) -> Workbench:
    """A workbench inside a fake tensor mode, whose heads have collected their statistics: no value is ever asked for."""
    bench = Workbench(workload, config, torch.device("cpu"))
    for head in bench.discriminator.score.heads:
        head.standardize.seen = head.standardize.updates  # type: ignore[union-attr]
    return bench


def flops_of(part: Callable[[], object]) -> float:
    """Floating-point operations of a call."""
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
