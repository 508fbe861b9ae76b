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
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.cost.cli import flattened
from adt_plugin.host.checks import REFUSED
from adt_plugin.host.families import FAMILIES
from adt_plugin.options import from_namespace, option_names
from toys import ToyDenoiser, toy_decode, toy_latents

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SAMPLES = sorted((REPOSITORY / "sample_configs").glob("*.toml"))


def test_the_table_of_options_has_every_option_with_its_default() -> None:
    table = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    for spec in dataclasses.fields(ADTConfig):
        default = "off" if spec.default is False else spec.default
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `--adt_{spec.name}` | `{default}` |"))
        assert row.endswith(f"| {range_of(spec)} | {spec.metadata['help'][0]} |")


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
    rows = [cells_of(line) for line in page.splitlines() if line.startswith("| `--adt_")]
    named = {name for row in rows for name in re.findall(r"--adt_(\w+)", row[0])}
    assert named == {spec.name for spec in dataclasses.fields(ADTConfig)}
    assert all(len(row) == 3 and len(row[2].strip()) > 10 for row in rows)


def test_that_no_gpu_has_run_it_is_said_once_for_the_reader_and_once_in_detail() -> None:
    said = re.compile(r"no(?:t|thing)? (?:\w+ ){0,4}(?:on a |needs a |by a )?GPU|needs? a GPU", re.I)
    saying = {
        path.name for path in DOCUMENTS if path.parent.name != "benchmarks" and said.search(path.read_text(encoding="utf-8"))
    }
    assert saying <= {"README.md", "compatibility.md"}


def test_the_shifts_of_flow_models_stand_in_one_place() -> None:
    stated = [path.name for path in DOCUMENTS if re.search(r"Lumina[^\n]*\b6\b", path.read_text(encoding="utf-8"))]
    assert stated == ["options.md"]


@pytest.mark.parametrize("word", ["turn", "unroll", "crop", "replay", "backbone", "heads", "warm-up", "balance", "guidance"])
def test_a_word_that_the_options_use_is_in_the_glossary(word: str) -> None:
    glossary = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert re.search(rf"^\s*- \*\*{word}\*\*", glossary, flags=re.M | re.I)


def test_the_example_of_the_core_page_trains(tiny_dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, with tiny networks under the names that it takes for granted; the backbone is a local one."""
    page = (REPOSITORY / "docs" / "core.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    example = example.replace("ADTConfig(", f"ADTConfig(backbone={str(tiny_dino)!r}, image_size=28, ")
    example = example.replace("warmup=100", "warmup=1")
    reports: list[TurnReport] = []
    call = AdversarialTurn.__call__
    monkeypatch.setattr(AdversarialTurn, "__call__", lambda *args, **named: reports.append(call(*args, **named)) or reports[-1])
    exec(compile(example, "core.md", "exec"), surroundings_of_the_example())
    assert [report.warmup for report in reports] == [True, False] and reports[1].grad_norm > 0


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


def test_the_options_page_leads_to_what_is_refused_and_why() -> None:
    document = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    assert "compatibility.md#refused" in document


def test_the_compatibility_page_has_every_trainer_and_every_refused_option() -> None:
    page = (REPOSITORY / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert all(f"| `{script}` | {family.name} |" in page for family in FAMILIES for script in family.scripts)
    assert all(f"| `--{name}` | {reason} |" in page for name, reason in REFUSED.items())
    assert "FAILS" not in page


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
