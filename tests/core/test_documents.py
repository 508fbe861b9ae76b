"""The documents and sample files agree with the code."""

from __future__ import annotations

import dataclasses
import re
from argparse import Namespace
from pathlib import Path

import pytest
import toml

from adt_plugin.core.config import ADTConfig
from adt_plugin.cost.cli import flattened
from adt_plugin.host.checks import REFUSED
from adt_plugin.host.families import FAMILIES
from adt_plugin.options import from_namespace, option_names

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SAMPLES = sorted((REPOSITORY / "sample_configs").glob("*.toml"))


def test_the_table_of_options_has_every_option_with_its_default() -> None:
    table = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    for spec in dataclasses.fields(ADTConfig):
        default = "off" if spec.default is False else spec.default
        assert f"| `--adt_{spec.name}` | `{default}` |" in table


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_named_in_a_document_exists(document: Path) -> None:
    named = set(re.findall(r"--(adt\w*)", document.read_text(encoding="utf-8")))
    assert named <= set(option_names()) | {"adt_"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_local_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_every_refused_option_is_documented() -> None:
    document = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    assert all(f"--{name}" in document for name in REFUSED)


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
