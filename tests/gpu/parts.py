"""The parts, ordered by value; the cells of each; and what a cell measures. Models and backbone are random, of true size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from gpu.hosts import host_run
from gpu.setting import Result, Setting

REPOSITORY = Path(__file__).resolve().parents[2]
CARDS = (8, 12, 16, 24)
"""GB of the cards that there are presets for."""


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        name: among those of its part.
        run: makes it.
        minutes: that it is expected to take on a large card, by the counted operations and the time to start; not measured.
    """

    name: str
    run: Callable[[Setting], Result]
    minutes: float = 1.0


@dataclass(frozen=True)
class Part:
    """Cells that belong together.

    Attributes:
        minutes: that they may take in one call.
        cells: in their order.
    """

    minutes: float
    cells: Callable[[Setting], Iterable[Cell]]


# 1: what users run


def check_cells(setting: Setting) -> Iterator[Cell]:
    """`gpu-check` on every model that has a preset; in miniature on the tiny one."""
    for model in ("sd15",) if setting.miniature else ("sd15", "sdxl", "sd3"):
        yield Cell(model, lambda setting, model=model: gpu_check(setting, model), minutes=2.5)


def gpu_check(setting: Setting, model: str) -> Result:
    from adt_plugin.cost import check_cli

    rows = setting.out / f"gpu-check-{model}.jsonl"
    rows.unlink(missing_ok=True)
    arguments = ["--model", model, "--device", setting.device, "--out", str(rows)]
    if setting.miniature:
        arguments += ["--tiny", "--repeats", "1", "--adt_steps", "2"]
    try:
        check_cli.check_main(arguments)
        ready = True
    except SystemExit as end:
        if not rows.exists():  # nothing was checked: it says why
            raise RuntimeError(end.code) from end
        ready = False
    return {"ready": ready, "findings": [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]}


# 2 to 5: the host's own scripts


LORA = ("--network_train_unet_only", "--gradient_checkpointing", "--cache_latents", "--no_half_vae")
SDPA = ("--sdpa",)


def sd15_cells(setting: Setting) -> Iterator[Cell]:
    """SD 1.5 at 512: without the plugin and with it, both half precisions, offload, attention, 8-bit AdamW."""
    for precision in ("bf16", "fp16") if setting.device == "cuda" else ("bf16",):  # accelerate refuses fp16 on a CPU
        for name, options in sd15_ways(setting).items():
            label = f"{precision} {name}"
            arguments = (*LORA, "--mixed_precision", precision, *options)
            yield host_cell(label, "train_network.py", "sd15", arguments, adt=name != "plain")


def host_cell(name: str, script: str, family: str, options: tuple[str, ...], minutes: float = 1.0, **keywords: bool) -> Cell:
    """Return a cell that runs a script of the host; arguments as for `host_run`."""
    label = f"{script.removesuffix('.py')} {family} {name}"
    return Cell(name, lambda setting: host_run(setting, label, script, family, options, **keywords), minutes)


def sd15_ways(setting: Setting) -> dict[str, tuple[str, ...]]:
    """Return the ways to train that are compared; those whose package is installed."""
    if setting.miniature:
        return {"adt offload": (*SDPA, "--adt_offload")}
    ways = {"plain": SDPA, "adt": SDPA, "adt offload": (*SDPA, "--adt_offload"), "adt auto": (*SDPA, "--adt_memory", "auto")}
    if find_spec("xformers"):
        ways["adt xformers"] = ("--xformers",)
    if find_spec("bitsandbytes"):
        ways["adt 8-bit"] = (*SDPA, "--optimizer_type", "AdamW8bit")
    return ways


def preset_cells(setting: Setting) -> Iterator[Cell]:
    """SDXL LoRA at 1024 with the preset of every card, its peak against the card; and without the plugin."""
    for card in CARDS[:1] if setting.miniature else CARDS:
        yield Cell(f"{card} GB", lambda setting, card=card: preset_run(setting, card, adt=True), minutes=1.2)
        yield Cell(f"{card} GB plain", lambda setting, card=card: preset_run(setting, card, adt=False))


def preset_run(setting: Setting, card: int, adt: bool) -> Result:
    """Run a preset as it is, but for its paths and its length."""
    preset = REPOSITORY / "sample_configs" / f"sdxl_lora_{card}gb.toml"
    prompts = str(preset.parent / "sample_prompts_1024.txt")  # the presets name it as it lies beside them
    options = ("--config_file", str(preset), "--no_half_vae", "--save_precision", "bf16", "--sample_prompts", prompts)
    label = f"preset {card} {'adt' if adt else 'plain'}"
    options += ("--logging_dir", str(setting.place("logs") / label))  # the presets' own would lie in the host's folder
    found = host_run(setting, label, "sdxl_train_network.py", "sdxl", options, adt)
    if "peak_gib" in found:
        found["fits"] = found["peak_gib"] * 2**30 < card * 1e9
    return found


FLOW = ("--network_train_unet_only", "--cache_text_encoder_outputs", "--cache_latents", "--mixed_precision", "bf16")
FLOW += ("--gradient_checkpointing", *SDPA)
FLUX_WAYS = {"fp8": ("--fp8_base",), "fp8 swap": ("--fp8_base", "--blocks_to_swap", "18")}
"""In fp8 as for smaller cards, and with the blocks on their way between the card and the computer's memory as well."""


def flow_cells(setting: Setting) -> Iterator[Cell]:
    """SD3 and FLUX LoRAs at 1024, denoiser and autoencoder of true size; then on tiny models; turns on the workbench."""
    flux = list(FLUX_WAYS.items())[: 1 if setting.miniature else None]  # a CPU has nothing to swap with
    ways = [("sd3", "", (), 1.2), *(("flux", f" {name}", options, 2.0) for name, options in flux)]
    for family, name, options, minutes in ways:
        for kind in ("adt", "plain"):
            script, label = f"{family}_train_network.py", f"{family}{name} {kind}"
            yield host_cell(label, script, family, (*FLOW, *options), minutes, adt=kind == "adt")
    for family in ("sd3", "flux"):
        script, model = f"{family}_train_network.py", "tiny" if setting.miniature else family
        if not setting.miniature:
            yield host_cell(f"{family} tiny", script, family, FLOW, 0.6, adt=True, tiny=True)
            yield host_cell(f"{family} tiny swap", script, family, (*FLOW, "--blocks_to_swap", "1"), 0.6, adt=True, tiny=True)
        yield Cell(f"{family} measured", lambda setting, model=model: measured(setting, model, one_graph=False), minutes=2)


def full_cells(setting: Setting) -> Iterator[Cell]:
    """Full fine-tuning of SDXL; its optimizer steps inside the backward pass, which the turn then shares, and after it."""
    adafactor = ("--optimizer_type", "Adafactor", "--optimizer_args", "scale_parameter=False", "relative_step=False")
    options = (*adafactor, "warmup_init=False", "--mixed_precision", "bf16", "--full_bf16", "--max_grad_norm", "0", *SDPA)
    options += ("--gradient_checkpointing", "--cache_latents", "--no_half_vae", "--cache_text_encoder_outputs")
    fused = (*options, "--fused_backward_pass")
    if not setting.miniature:
        yield host_cell("plain fused", "sdxl_train.py", "sdxl", fused, 1.5, adt=False)
    yield host_cell("adt fused", "sdxl_train.py", "sdxl", (*fused, "--adt_memory", "auto"), 1.5, adt=True)
    yield host_cell("adt", "sdxl_train.py", "sdxl", options, 1.5, adt=True)


# 6: cost, measured


def cost_cells(setting: Setting) -> Iterator[Cell]:
    """A plain step, its parts, turns replayed and with kept graphs, and the whole unroll in one graph; then all tables."""
    for model in ("tiny",) if setting.miniature else ("sd15", "sdxl", "sd3"):
        yield Cell(model, lambda s, model=model: measured(s, model), minutes=2)
    yield Cell("tables", cost_tables, minutes=20)


def measured(setting: Setting, model: str, one_graph: bool = True) -> Result:
    """Measure a LoRA of a model at its own resolution with the defaults."""
    import torch

    from adt_plugin.core.config import ADTConfig
    from adt_plugin.core.forecast import as_sampled
    from adt_plugin.core.stopwatch import Stopwatch
    from adt_plugin.cost import tiny
    from adt_plugin.cost.measure import device_name, measure_base, measure_turn, prepared
    from adt_plugin.cost.workbench import Workload
    from benchmarks.one_graph import measure_one_graph

    device = torch.device(setting.device)
    config = as_sampled(ADTConfig(**(tiny.OPTIONS | {"steps": 2}) if setting.miniature else {}), model)
    bench, watch = prepared(Workload(model), config, device), Stopwatch(device, 1 if setting.miniature else 2)
    base = measure_base(bench, watch)
    found: Result = {"device": device_name(device), "step": base.seconds, "step_gib": base.peak / 2**30}
    found["parts"] = asdict(base.parts)
    start = (2 + config.steps) // 2
    for memory in ("low", "fast"):
        turn = measure_turn(bench, watch, ADTConfig(**asdict(config) | {"memory": memory}), start)
        found |= {f"turn_{memory}": turn.seconds, f"turn_{memory}_gib": turn.peak / 2**30}
    if one_graph:
        whole = measure_one_graph(bench, watch, config, start)
        found |= {"one_graph": whole.seconds, "one_graph_gib": whole.peak / 2**30}
    return found


def cost_tables(setting: Setting) -> Result:
    """The tables of docs/benchmarks/cost.md with this device's cells; goes on from those of the repository."""
    import torch

    from benchmarks.cost import write_tables
    from benchmarks.cost_sweep import in_miniature

    folder = setting.out / "cost"
    folder.mkdir(exist_ok=True)
    if setting.miniature:
        with in_miniature():
            write_tables(folder, torch.device(setting.device), repeats=1)
        return {"written": str(folder / "cost.md")}
    if not (folder / "cost.json").exists():
        shutil.copy(REPOSITORY / "docs" / "benchmarks" / "cost.json", folder)
    write_tables(folder, torch.device(setting.device), repeats=2)
    return {"written": str(folder / "cost.md")}


# 7: does it help, at a size that a CPU cannot run


def effect_cells(setting: Setting) -> Iterator[Cell]:
    """One cell a seed: the base, plain training and ADT from it, scored alike."""
    for seed in range(1 if setting.miniature else 3):
        yield Cell(f"seed {seed}", lambda s, seed=seed: effect(s, seed), minutes=15)


def effect(setting: Setting, seed: int) -> Result:
    from gpu.effect import FULL, SMALLEST, compare

    return compare(SMALLEST if setting.miniature else FULL, setting.device, seed, setting.place("effect"))


PARTS = {
    "1-gpu-check": Part(10, check_cells),
    "2-sd15": Part(25, sd15_cells),
    "3-sdxl-presets": Part(25, preset_cells),
    "4-flow": Part(20, flow_cells),
    "5-sdxl-full": Part(15, full_cells),
    "6-cost": Part(40, cost_cells),
    "7-effect": Part(60, effect_cells),
}
"""By the name of their folder, in the order of what their results are worth."""

FIRST = (
    ("1-gpu-check", "sdxl"),
    ("3-sdxl-presets", "24 GB"),
    ("3-sdxl-presets", "24 GB plain"),
    ("2-sd15", "bf16 adt"),
    ("2-sd15", "bf16 plain"),
    ("4-flow", "flux fp8 adt"),
    ("4-flow", "flux fp8 plain"),
    ("4-flow", "sd3 adt"),
    ("4-flow", "sd3 plain"),
    ("4-flow", "flux fp8 swap adt"),
)
"""What is run before all else: one run of every model with the plugin and without, for a card that is there for a quarter of an
hour."""
