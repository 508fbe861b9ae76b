"""The documents and sample files agree with the code."""

from __future__ import annotations

import dataclasses
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import toml
import torch
from diffusers import DDPMScheduler

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.report import TurnReport
from adt_plugin.core.run.monitor import KEYS, ROW, SHOWN
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.cost.cli import flattened
from adt_plugin.host.checks import REFUSED, REFUSED_WITH_DEEPSPEED
from adt_plugin.host.families import FAMILIES, Family
from adt_plugin.host.schedules import FlowSchedule
from adt_plugin.options import from_namespace, level_of, option_names
from toys import ToyDenoiser, toy_decode, toy_latents

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SAMPLES = sorted((REPOSITORY / "sample_configs").glob("*.toml"))


def test_the_table_of_options_has_every_option_with_its_default() -> None:
    table = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    for spec in dataclasses.fields(ADTConfig):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `--adt_{spec.name}` | `{default_of(spec)}` |"))
        assert row.endswith(f"| {range_of(spec)} | {spec.metadata['help'][0]} |")


@pytest.mark.parametrize(("heading", "level"), [("Basic", "basic"), ("Advanced", "advanced"), ("For research", "research")])
def test_every_option_stands_under_the_heading_of_its_level(heading: str, level: str) -> None:
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `--adt_(\w+)` ", section, flags=re.M)
    assert sorted(rows) == sorted(spec.name for spec in dataclasses.fields(ADTConfig) if level_of(spec.name) == level)


def default_of(spec: dataclasses.Field) -> str:
    """The default as the tables show it."""
    return "off" if spec.default is False else str(spec.default)


def range_of(spec: dataclasses.Field) -> str:
    """The column of ranges: the words of a choice, or both bounds of a number."""
    low, high, choices = (spec.metadata[name] for name in ("low", "high", "choices"))
    return ", ".join(choices) or ("" if low is None else f"{low:g} to {high:g}")


def cells_of(line: str) -> list[str]:
    """The cells of a row, as GitHub reads it: a pipe in a code span is a pipe all the same, but for an escaped one."""
    return re.split(r"(?<!\\)\|", line.strip().strip("|"))


def tables_of(text: str) -> list[list[str]]:
    """Every run of lines that begin with a pipe, outside of code."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return [found.strip().splitlines() for found in re.findall(r"(?:^\|[^\n]*(?:\n|\Z))+", text, flags=re.M)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_table_has_a_rule_beneath_its_head_and_as_many_cells_in_every_row(document: Path) -> None:
    for table in tables_of(document.read_text(encoding="utf-8")):
        assert len(table) > 2 and re.fullmatch(r"[\s|:-]+", table[1]), table[0]
        widths = {len(cells_of(line)) for line in table}
        assert len(widths) == 1, f"{document.name}: {table[0]}"


def test_a_table_that_would_not_render_is_noticed() -> None:
    (table,) = tables_of("text\n\n| a | b |\n|---|---|\n| 1 |\n\nmore")
    assert [len(cells_of(line)) for line in table] == [2, 2, 1]


def test_every_option_of_the_method_page_has_its_ground() -> None:
    """Three columns: the option, its default, and why; the ground is a sentence or says that there is no measurement."""
    page = (REPOSITORY / "docs" / "method.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in cells_of(line)] for line in page.splitlines() if line.startswith("| `--adt_")]
    defaults = {f"`--adt_{spec.name}`": default_of(spec) for spec in dataclasses.fields(ADTConfig)}
    assert {option: default for option, default, _ in rows} == defaults
    assert all(len(ground) > 10 for _, _, ground in rows)


def test_that_no_gpu_has_run_it_is_said_once_for_the_reader_and_once_in_detail() -> None:
    said = re.compile(r"no(?:t|thing)? (?:\w+ ){0,4}(?:on a |needs a |by a )?GPU|needs? a GPU", re.I)
    saying = {
        path.name for path in DOCUMENTS if path.parent.name != "benchmarks" and said.search(path.read_text(encoding="utf-8"))
    }
    assert saying <= {"README.md", "compatibility.md"}


def test_the_shifts_of_flow_models_stand_in_one_place() -> None:
    alone = re.compile(r"Lumina[^\n]*(?<![\d.])6(?!\.?\d)")  # not the beginning of a figure such as 6.1
    stated = [path.name for path in DOCUMENTS if alone.search(path.read_text(encoding="utf-8"))]
    assert stated == ["options.md"]


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if isinstance(family.schedule, FlowSchedule)], ids=lambda family: family.name
)
def test_the_shift_of_a_flow_model_is_the_one_that_it_is_walked_with(family: Family) -> None:
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    (row,) = (cells_of(line) for line in page.splitlines() if line.startswith(f"| {family.name} | Euler |"))
    small, large = (family.schedule.shift((side, side)) for side in (64, 128))
    assert row[-1].strip() == f"{small:g}" if small == large else row[-1].strip().startswith("e^mu")


def test_the_presets_of_the_cost_page_say_what_the_files_say() -> None:
    page = (REPOSITORY / "docs" / "cost.md").read_text(encoding="utf-8")
    for preset in (sample for sample in SAMPLES if sample.stem.endswith("gb")):
        ((peak, run),) = re.findall(r"peak ([\d.]+) GiB, ([\d.]+) times", preset.read_text(encoding="utf-8"))
        (row,) = (line for line in page.splitlines() if f"[{preset.name}]" in line)
        assert row.endswith(f"| {peak} GiB | {float(run):.1f} x |")


WORDS = (
    *("turn", "sampler", "grid", "path", "start", "unroll", "guidance", "latents", "decoder", "crop"),
    *("discriminator", "backbone", "block", "heads", "pair", "score", "siamese", "unary", "augmentation"),
    *("trained steps", "replay", "kept graphs", "weight", "balance", "ratio", "cap", "none", "phase", "warm-up", "offload"),
)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_the_options_use_is_in_the_glossary(word: str) -> None:
    glossary = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert re.search(rf"\*\*{word}\*\*", glossary, flags=re.I)


def test_the_example_of_the_core_page_trains(tiny_dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, with tiny networks under the names that it takes for granted; the backbone is a local one."""
    page = (REPOSITORY / "docs" / "core.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    example = example.replace("ADTConfig(", f"ADTConfig(backbone={str(tiny_dino)!r}, image_size=28, warmup=1")
    reports: list[TurnReport] = []
    call = AdversarialTurn.__call__
    monkeypatch.setattr(AdversarialTurn, "__call__", lambda *args, **named: reports.append(call(*args, **named)) or reports[-1])
    exec(compile(example, "core.md", "exec"), surroundings_of_the_example())
    assert [report.warmup for report in reports] == [True, False, False] and reports[1].grad_norm > 0


def surroundings_of_the_example() -> dict[str, object]:
    """What the example does not define."""
    net = ToyDenoiser()

    class Unet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: object) -> SimpleNamespace:
            return SimpleNamespace(sample=self.net(x, t))

    unet = Unet()
    vae = SimpleNamespace(
        config=SimpleNamespace(scaling_factor=0.18215), decode=lambda z: SimpleNamespace(sample=toy_decode(z))
    )
    return {
        "torch": torch,
        "F": torch.nn.functional,
        "unet": unet,
        "vae": vae,
        "noise_scheduler": DDPMScheduler(beta_schedule="scaled_linear"),
        "optimizer": torch.optim.AdamW(unet.parameters(), 1e-4),
        "sample_timesteps": lambda: torch.tensor([300, 300]),
        "data": [(toy_latents(seed=seed), None) for seed in range(3)],
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_named_in_a_document_exists(document: Path) -> None:
    named = set(re.findall(r"--(adt\w*)", document.read_text(encoding="utf-8")))
    assert named <= set(option_names()) | {"adt_"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_local_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_heading_finds_it(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", text):
        page = document.parent / target if target else document
        headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
        assert anchor in map(anchor_of, headings), f"{target}#{anchor}"


def anchor_of(heading: str) -> str:
    """The name that GitHub gives a heading: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_options_page_leads_to_what_is_refused_and_why() -> None:
    document = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    assert "compatibility.md#refused" in document


def test_the_compatibility_page_has_every_trainer_and_every_refused_option() -> None:
    page = (REPOSITORY / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert all(f"| `{script}` | {family.name} |" in page for family in FAMILIES for script in family.scripts)
    assert all(f"| `--{name}` | {reason} |" in page for name, reason in REFUSED.items())
    assert all(f"| `--{name} {value}` | {reason} |" in page for (name, value), reason in REFUSED_WITH_DEEPSPEED.items())
    assert "FAILS" not in page


def test_the_names_in_rows_are_those_that_the_options_page_explains() -> None:
    """In rows without `adt/`, in trackers with it."""
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8").partition("## What the numbers mean")[2]
    named = {name for line in re.findall(r"^\| (`[^|]*) \|", page, flags=re.M) for name in re.findall(r"`([\w/]+)`", line)}
    in_rows = {KEYS.get(name, name) for name in ROW} | {"step"}
    assert {f"adt/{name}" for name in SHOWN} <= named
    assert {name for name in in_rows if name not in SHOWN} <= named
    assert {name.removeprefix("adt/") for name in named if name.startswith("adt/")} <= in_rows


def test_every_test_that_a_promise_names_exists() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    sources = {path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")}
    for line in page.splitlines():
        file = ""
        for found, name in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", line):
            file = found or file  # a name without a file is in the one before
            assert file in sources or not (found or name), line
            assert not name or f"def {name}(" in sources[file], f"{file}::{name}"


def keys_of(path: Path) -> dict[str, object]:
    """As sd-scripts reads it: sections have no meaning."""
    return flattened(toml.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_every_sample_turns_adt_on_with_valid_options(sample: Path) -> None:
    keys = keys_of(sample)
    assert keys["adt"] is True
    from_namespace(Namespace(**keys))


def test_the_sample_of_keys_alone_shows_the_defaults() -> None:
    keys = keys_of(REPOSITORY / "sample_configs" / "adt_only.toml")
    assert from_namespace(Namespace(**keys)) == ADTConfig()


@pytest.mark.parametrize("sample", [path for path in SAMPLES if path.stem != "adt_only"], ids=lambda path: path.name)
def test_every_preset_has_something_to_judge_by(sample: Path) -> None:
    """Prompts that lie beside it, of the size that it trains at."""
    keys = keys_of(sample)
    prompts = (sample.parent / str(keys["sample_prompts"])).read_text(encoding="utf-8")
    side = str(keys["resolution"]).split(",")[0]
    lines = [line for line in prompts.splitlines() if not line.startswith("#")]
    assert len(lines) >= 3 and all(f"--w {side} --h {side} --d " in line for line in lines)
    assert keys["max_train_steps"] >= 2 * keys["sample_every_n_steps"]  # type: ignore[operator]


@pytest.mark.parametrize("sample", [path for path in SAMPLES if path.stem != "adt_only"], ids=lambda path: path.name)
def test_no_preset_trains_larger_images_than_its_buckets_hold(sample: Path) -> None:
    """sd-scripts ends there; its own limit is 1024 pixels."""
    keys = keys_of(sample)
    assert max(map(int, str(keys["resolution"]).split(","))) <= int(str(keys.get("max_bucket_reso", 1024)))


def test_every_preset_is_in_the_guide_of_its_model() -> None:
    guide = (REPOSITORY / "docs" / "guides" / "models.md").read_text(encoding="utf-8")
    presets = [path.name for path in SAMPLES if path.stem != "adt_only"]
    assert [name for name in presets if f"(../../sample_configs/{name})" not in guide] == []


@pytest.mark.parametrize(
    ("preset", "model"),
    [
        ("sd15_lora", "Stable Diffusion 1.5, 512 px"),
        ("sd3_lora", "SD3-medium, 1024 px"),
        ("flux_lora", "FLUX.1, 1024 px"),
        ("lumina_lora", "Lumina Image 2.0, 1024 px"),
        ("anima_lora", "Anima, 1024 px"),
    ],
)
def test_the_table_of_the_guide_says_what_was_counted(preset: str, model: str) -> None:
    guide, counted = (
        (REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("guides/models.md", "benchmarks/cost.md")
    )
    rows = (list(map(str.strip, cells_of(line))) for line in counted.splitlines() if line.startswith(f"| {model} "))
    ((run, peak),) = ((cells[7], cells[9]) for cells in rows if cells[1:4] == ["LoRA", "1", "defaults"])
    (row,) = (list(map(str.strip, cells_of(line))) for line in guide.splitlines() if f"| [{preset}.toml]" in line)
    assert row[2].split(" in ")[0] == f"{peak} GiB" and row[3] == run


def test_the_preset_that_finishes_a_lora_goes_on_from_its_file_and_keeps_it() -> None:
    keys = keys_of(REPOSITORY / "sample_configs" / "sdxl_finish.toml")
    assert keys["dim_from_weights"] is True and "network_dim" not in keys and keys["adt_begin"] == 0
    assert Path(str(keys["network_weights"])).stem != keys["output_name"]
