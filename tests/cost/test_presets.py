"""The sample files for cards of a given size: what they say of time and memory is what is counted for them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.forecast import RUN_STEPS, as_sampled, run_ratio
from adt_plugin.cost.cli import cost_parser, options_of, with_config_file, workload_of
from adt_plugin.cost.count import counted_parts, counted_peaks, kept_graphs
from adt_plugin.cost.models import BACKBONE_PIXELS
from adt_plugin.cost.workbench import Workload


def card(preset: Path) -> int:
    """GB of the card in the file's name."""
    return int(re.findall(r"_(\d+)gb", preset.name)[0])


SAMPLES = Path(__file__).resolve().parents[2] / "sample_configs"
PRESETS = sorted(SAMPLES.glob("*_*gb.toml"), key=card)
WITHOUT_CARD = [SAMPLES / f"{model}_lora.toml" for model in ("chroma", "lumina", "anima")]
"""Presets of one model each, which say what is counted for them."""
GUIDE = SAMPLES.parent / "docs" / "guides" / "models.md"
GIB, GB = 2**30, 10**9
ROOM = 1.4
"""GB that a preset leaves for what is not counted."""


def said(preset: Path) -> tuple[float, float]:
    """(peak in GiB, time of the run over the plain one) in the file's head."""
    found = re.search(r"peak ([\d.]+) GiB, ([\d.]+) times", preset.read_text(encoding="utf-8"))
    assert found, preset
    return float(found[1]), float(found[2])


def test_there_is_a_preset_for_every_usual_card() -> None:
    assert [card(preset) for preset in PRESETS] == [8, 12, 16, 24]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_a_preset_leaves_room_on_its_card_and_costs_at_most_three_plain_runs(preset: Path) -> None:
    peak, run = said(preset)
    assert peak * GIB <= (card(preset) - ROOM) * GB
    assert run <= 3.0


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_no_preset_shrinks_what_it_shows_more_than_the_backbone_can_bear(preset: Path) -> None:
    """Detail that is shrunk four times over is judged by nobody."""
    given = with_config_file(cost_parser(), ["--model", preset.name.partition("_")[0], "--config_file", str(preset)])
    config, workload = options_of(given), workload_of(given)
    decoded = config.decode_crop or workload.resolution or workload.size.resolution
    assert decoded / (config.image_size or BACKBONE_PIXELS) < 2.5


@pytest.mark.parametrize("preset", WITHOUT_CARD, ids=lambda path: path.name)
def test_the_guide_says_what_a_preset_says(preset: Path) -> None:
    peak, run = said(preset)
    row = f"| [{preset.name}](../../sample_configs/{preset.name}) | {peak:.2f} GiB | {run} x |"
    assert row in GUIDE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*PRESETS, *WITHOUT_CARD], ids=lambda path: path.name)
def test_what_a_preset_says_is_what_is_counted(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true backbone, not the tiny one of these tests
    given = with_config_file(cost_parser(), ["--model", preset.name.partition("_")[0], "--config_file", str(preset)])
    config, workload = options_of(given), workload_of(given)
    peak = counted_peaks(workload, config).keeping(kept_graphs(config)) / GIB
    run = run_ratio(counted_parts(workload, config), config, given.max_train_steps)
    assert said(preset) == (pytest.approx(peak, abs=0.006), pytest.approx(run, abs=0.006))


@pytest.mark.slow
def test_what_is_counted_for_hunyuan_image_without_a_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    options = ["--model", "hunyuan", "--network_dim", "16", "--mixed_precision", "bf16", "--gradient_checkpointing"]
    given = cost_parser().parse_args(options)
    config, workload = options_of(given), workload_of(given)
    peak = counted_peaks(workload, config).keeping(kept_graphs(config)) / GIB
    run = run_ratio(counted_parts(workload, config), config, given.max_train_steps)
    assert (peak, run) == (pytest.approx(36.70, abs=0.006), pytest.approx(1.37, abs=0.006))
    assert "36.70 GiB without the swap | 1.37 x |" in GUIDE.read_text(encoding="utf-8")
    assert "without it 36.70 GiB are counted" in (SAMPLES / "hunyuan_lora.toml").read_text(encoding="utf-8")


PAGE = (SAMPLES.parent / "docs" / "cost.md").read_text(encoding="utf-8")
TINY_DECODER = {
    "low": r"\| whole image at 518 pixels through `--adt_decoder taesd` \| ([\d.]+) \| ([\d.]+) x \|",
    "fast": r"through `--adt_decoder taesd`, kept graphs \| ([\d.]+) GiB \| ([\d.]+) x \|",
}
"""Where docs/cost.md says what a tiny decoder costs on SDXL: peak in GiB, and the run's time over the plain one."""


@pytest.mark.slow
@pytest.mark.parametrize("memory", TINY_DECODER)
def test_what_is_said_of_a_tiny_decoder_is_what_is_counted(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (peak, run) = re.findall(TINY_DECODER[memory], PAGE)[0]
    config = ADTConfig(decoder="taesd", decode_crop=0, image_size=518, memory=memory)
    if memory == "fast":  # the lines of the preset for 12 GB that are commented out
        assert card(PRESETS[1]) == 12 and "taesd" in PRESETS[1].read_text(encoding="utf-8")
        given = with_config_file(cost_parser(), ["--model", "sdxl", "--config_file", str(PRESETS[1])])
        config = replace(options_of(given), decoder="taesd", decode_crop=0, image_size=518)
    workload, config = Workload("sdxl", 1024), as_sampled(config, "sdxl")
    counted = counted_peaks(workload, config).keeping(kept_graphs(config)) / GIB
    ratio = run_ratio(counted_parts(workload, config), config, RUN_STEPS)
    assert counted == pytest.approx(float(peak), abs=0.006)
    assert round(ratio, len(run.partition(".")[2])) == float(run)
