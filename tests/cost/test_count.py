"""What is counted without data is what is alive and done with data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import total, turn_shares
from adt_plugin.cost.count import counted_parts, counted_peaks, flops_of, kept_graphs
from adt_plugin.cost.measure import always_from, peak_bytes, peak_of_turn, prepared
from adt_plugin.cost.workbench import Workbench, Workload, nbytes

CPU = torch.device("cpu")


def turn_flops(bench: Workbench, config: ADTConfig, start: int) -> float:
    """Of a turn done, from a start of its own."""
    turn = bench.turn(always_from(config, start))
    bench.adt_step(turn)  # the balance needs a diffusion gradient
    return flops_of(lambda: bench.adt_step(turn)) - flops_of(bench.step)


@pytest.mark.parametrize(
    "options", [{}, {"memory": "fast"}, {"memory": "joined"}, {"grad_steps": 1}, {"decode_crop": 32}], ids=str
)
def test_a_whole_turn_does_what_its_parts_do_and_nothing_else(
    workload: Workload, config: ADTConfig, options: dict[str, object]
) -> None:
    """But for the gradient at a replay's input, which reentrant checkpointing asks for."""
    config = replace(config, **options)
    done = turn_flops(prepared(workload, config, CPU), config, 4)
    parts = total(list(turn_shares(counted_parts(workload, config), config, 4)))
    assert parts <= done < 1.01 * parts


def test_parts_have_their_proportions(workload: Workload, config: ADTConfig) -> None:
    parts = counted_parts(workload, config)
    assert 2.5 * parts.forward < parts.step < 3.5 * parts.forward  # checkpointing; no gradient for frozen weights
    full = counted_parts(replace(workload, rank=0), config)
    assert 3.5 * full.forward < full.step < 4.1 * full.forward
    assert parts.decode_generated > 2 * parts.decode_real
    doubled = counted_parts(replace(workload, batch=2), config)
    assert doubled.forward == pytest.approx(2 * parts.forward, rel=0.02)


@pytest.mark.parametrize("rank", [pytest.param(4, id="LoRA"), pytest.param(0, id="full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{}, {"decode_crop": 32}, {"memory": "fast"}, {"memory": "joined"}], ids=str)
def test_counted_peaks_are_the_measured_ones(
    workload: Workload, config: ADTConfig, rank: int, options: dict[str, object]
) -> None:
    workload, config = replace(workload, rank=rank), replace(config, **options)
    peaks = counted_peaks(workload, config)
    bench = prepared(workload, config, CPU)
    plain = peak_bytes(bench, bench.step) - bench.own_bytes()
    bench.optimizer.zero_grad()
    measured = peak_of_turn(bench, bench.turn(always_from(config, 4)))
    assert peaks.plain == pytest.approx(plain, rel=0.03)
    assert peaks.of(config) == pytest.approx(measured, rel=0.03)
    assert peaks.backbone == nbytes(bench.backbone_tensors())


def test_the_peak_is_the_same_at_any_m_and_k(workload: Workload, config: ADTConfig) -> None:
    bench = prepared(workload, config, CPU)
    peaks = []
    for steps, grad_steps in ((4, 1), (10, 1), (10, 8), (20, 8)):
        turn = bench.turn(always_from(replace(config, steps=steps, grad_steps=grad_steps), steps))
        peaks.append(peak_of_turn(bench, turn))
    assert max(peaks) < 1.01 * min(peaks)


@pytest.mark.slow
def test_offloading_takes_decoder_and_backbone_from_the_replay_alone(workload: Workload, config: ADTConfig) -> None:
    def saved(workload: Workload, config: ADTConfig) -> int:
        home, away = (counted_peaks(workload, replace(config, offload=offload)).turn for offload in (False, True))
        return home - away

    assert saved(workload, config) == 0  # the decode is the peak
    crowded, small = replace(workload, batch=16), replace(config, decode_crop=16)  # whose replay is
    bench = prepared(crowded, small, CPU)
    assert saved(crowded, small) == nbytes(bench.visual_tensors())


def test_taesd_is_counted_as_a_decoder_of_its_size(workload: Workload, config: ADTConfig) -> None:
    tiny = AutoencoderTiny(latent_channels=4).decoder.eval()
    latents = torch.zeros(workload.batch, 4, workload.side, workload.side)
    with torch.no_grad():
        expected = flops_of(lambda: tiny(latents))
    assert counted_parts(workload, replace(config, decoder="taesd")).decode_real == expected
    assert counted_parts(workload, config).decode_real != expected


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({}, 0),
        ({"memory": "joined"}, 0),
        ({"memory": "fast"}, 2),
        ({"memory": "fast", "grad_mask": "all"}, 4),
        ({"memory": "fast", "cfg_scale": 2.0}, 2),
        ({"memory": "fast", "grad_steps": 9}, 4),
    ],
)
def test_how_many_graphs_are_kept(config: ADTConfig, options: dict[str, object], graphs: int) -> None:
    assert kept_graphs(replace(config, **options)) == graphs
