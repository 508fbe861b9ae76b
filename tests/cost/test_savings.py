"""What the host's options for small cards save, against what is told of the models' sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.cost import cli
from adt_plugin.cost.cli import cost_parser, with_config_file, workload_of
from adt_plugin.cost.count import Peaks
from adt_plugin.cost.measure import prepared
from adt_plugin.cost.models import MODELS
from adt_plugin.cost.report import answers
from adt_plugin.cost.savings import savings, weights
from adt_plugin.cost.workbench import Workload

FLUX = Workload("flux")
SAMPLE = Path(__file__).resolve().parents[2] / "sample_configs" / "flux_lora.toml"

FLUX_PEAKS = (25.49, 26.09)
"""GiB of a plain step and of one with a turn: docs/benchmarks/cost.md."""


def flux() -> torch.nn.Module:
    with torch.device("meta"):
        return MODELS["flux"].build()


def test_fp8_is_a_byte_a_weight_but_for_the_block_that_computes() -> None:
    saved = savings(FLUX, {"fp8_base": True})["fp8_base"]
    block = weights(flux().transformer_blocks[0])
    assert 330e6 < block < 350e6 and saved == weights(flux()) - 2 * block
    assert savings(FLUX, {"fp8_base_unet": True}) == {"fp8_base_unet": saved}
    assert savings(FLUX, {"fp8_base": True, "fp8_base_unet": True}) == {"fp8_base": saved, "fp8_base_unet": 0}


@pytest.mark.parametrize(
    "workload",
    [replace(FLUX, checkpointing=False), replace(FLUX, rank=0), replace(FLUX, dtype="fp32"), Workload("anima")],
    ids=str,
)
def test_fp8_is_not_counted_where_it_saves_nothing_or_is_refused(workload: Workload) -> None:
    assert savings(workload, {"fp8_base": True}) == {}


@pytest.mark.parametrize("fp8", [False, True])
def test_swapped_blocks_are_off_the_card_two_single_ones_for_each_double_one(fp8: bool) -> None:
    asked: dict[str, Any] = {"blocks_to_swap": 18} | ({"fp8_base": True} if fp8 else {})
    double, single = (weights(part[0]) for part in (flux().transformer_blocks, flux().single_transformer_blocks))
    assert savings(FLUX, asked)["blocks_to_swap"] == (9 * double + 18 * single) * (1 if fp8 else 2)


def test_a_unet_has_no_blocks_that_are_swapped() -> None:
    assert savings(Workload("sdxl"), {"blocks_to_swap": 4}) == {}


def test_moments_of_eight_bits_are_a_byte_each() -> None:
    saved = savings(Workload("tiny", rank=4), {"optimizer_type": "AdamW8bit"})["optimizer_type"]
    assert savings(Workload("tiny", rank=8), {"use_8bit_adam": True}) == {"use_8bit_adam": 2 * saved}
    bench = prepared(Workload("tiny", rank=4), ADTConfig(backbone="tiny", disc_width=16), torch.device("cpu"))
    assert saved == 2 * 3 * sum(parameter.numel() for parameter in bench.trained)
    assert savings(FLUX, {"optimizer_type": "Prodigy"}) == {}


def test_the_sample_of_flux_fits_a_card_of_24_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what was counted for it without fp8."""
    given = with_config_file(cost_parser(), ["--config_file", str(SAMPLE)])
    saved = savings(workload_of(given), cli.asked(given))
    without = Peaks(*(round(gib * 2**30) for gib in FLUX_PEAKS), backbone=0, graph=0)
    for peaks, fits in ((without, "24 GB no"), (without.less(sum(saved.values())), "24 GB yes")):
        assert fits in next(answers(workload_of(given), ADTConfig(), 2000, peaks))
