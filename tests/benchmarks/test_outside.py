"""What publishes tables is not in the package, and what a user runs does not reach for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from adt_plugin.cost.cli import cost_main
from adt_plugin.demo.cli import demo_main

PACKAGE = Path(__file__).resolve().parents[2] / "adt_plugin"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(module: Path) -> Iterator[str]:
    """Yield the full name of every module that a module of the package imports, anywhere in its code."""
    here = ("adt_plugin", *module.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level + 1], *filter(None, [node.module])] if node.level else [node.module or ""]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def texts(module: Path) -> Iterator[str]:
    """Yield every string of a module that is not a docstring or another string that nothing uses."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    unused = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unused:
            yield node.value


def is_in_docs(text: str) -> bool:
    """Return whether a string is a path in `docs`: `docs` itself, or the beginning of such a path."""
    return re.match(r"docs($|[/\\])", text) is not None


@pytest.mark.parametrize(
    ("text", "expected"), [("docs", True), ("docs/benchmarks", True), ("documents", False), ("a docs", False)]
)
def test_a_path_in_docs_is_recognised(text: str, expected: bool) -> None:
    assert is_in_docs(text) == expected


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_of_the_package_knows_a_path_in_docs(module: Path) -> None:
    assert [text for text in texts(module) if is_in_docs(text)] == []


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [("demo", ("adt_plugin.cost", "adt_plugin.host")), ("cost", ("adt_plugin.demo", "adt_plugin.host")),
     ("core", ("adt_plugin.demo", "adt_plugin.cost", "adt_plugin.host"))],
)  # fmt: skip
def test_rooms_beside_each_other_do_not_import_each_other(room: str, forbidden: tuple[str, ...]) -> None:
    modules = [module for module in MODULES if module.is_relative_to(PACKAGE / room)]
    assert len(modules) > 5
    wrong = [(module.name, name) for module in modules for name in imported(module) if name.startswith(forbidden)]
    assert wrong == []


def test_nothing_in_the_package_imports_a_benchmark_or_a_test() -> None:
    outside = {path.stem for path in PACKAGE.parent.joinpath("tests").iterdir()} - {"core", "host", "demo", "cost"}
    wrong = [(module.name, name) for module in MODULES for name in imported(module) if name.split(".")[0] in outside]
    assert wrong == []


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder like a clone's, in which a command is run; its only content is an empty `docs/benchmarks`."""
    (tmp_path / "clone" / "docs" / "benchmarks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def untouched(clone: Path) -> bool:
    """Return whether nothing was written into the folder."""
    return [path.relative_to(clone).as_posix() for path in clone.rglob("*")] == ["docs", "docs/benchmarks"]


def test_the_demo_writes_into_its_folder_alone(docs: Path, tmp_path: Path, tiny_setting, monkeypatch) -> None:
    monkeypatch.setattr("adt_plugin.demo.cli.QUICK_SETTING", tiny_setting)
    demo_main(["--quick", "--seconds", "0.3", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "results.md").is_file() and untouched(docs)


def test_the_cost_command_writes_no_file(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--model", "tiny", "--mixed_precision", "no", "--network_dim", "4", "--adt_disc_width", "16", "--adt_steps", "2"]
    cost_main([*run, "--measure", "--device", "cpu", "--repeats", "1"])
    assert "one thread" in capsys.readouterr().out and untouched(docs)
