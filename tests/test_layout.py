"""The rooms of the package: the core stands alone; host, demo, cost and compare stand beside each other on it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "adt_plugin"
REPOSITORY = Path(__file__).resolve().parents[1]

ALLOWED = {
    "core": {"core"},
    "options": {"core", "options"},
    "host": {"core", "options", "host"},
    "demo": {"core", "options", "demo"},
    "cost": {"core", "options", "cost"},
    "compare": {"core", "compare"},
}
"""Room -> rooms that it may import from. A room is a folder or a module directly in the package."""


@dataclass(frozen=True)
class Import:
    """One import of one module: where it stands, what it takes, and whether it is executed when its module is imported."""

    importer: str
    imported: str
    name: str  # what is taken from the module; empty for the module itself
    line: int
    at_import: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules_of(folder: Path) -> dict[str, Path]:
    """Map the full name of every module of the package in this folder to its file."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def statements(node: ast.AST, at_import: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield every import statement beneath a node, and whether importing the module executes it."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, at_import
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for part, executed in ((node.body, False), (node.orelse, at_import)):
            for child in part:
                yield from statements(child, executed)
    else:
        inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from statements(child, inside)


def targets(
    statement: ast.Import | ast.ImportFrom, importer: str, is_package: bool, modules: dict[str, Path]
) -> Iterator[tuple[str, str]]:
    """Yield the full name of each module that a statement imports, and what it takes from it.

    `from package import name` imports the submodule `package.name` if there is one, else `package`.
    """
    if isinstance(statement, ast.Import):
        yield from ((alias.name, "") for alias in statement.names)
        return
    base = statement.module or ""
    if statement.level:
        parents = importer.split(".")
        parents = parents[: len(parents) - statement.level + is_package]
        base = ".".join([*parents, *filter(None, [base])])
    for alias in statement.names:
        full = f"{base}.{alias.name}"
        yield (full, "") if full in modules else (base, alias.name)


def imports_of(folder: Path) -> list[Import]:
    """List the imports of the package's modules among each other."""
    modules = modules_of(folder)
    found = []
    for importer, path in modules.items():
        for statement, at_import in statements(ast.parse(path.read_text(encoding="utf-8"))):
            for module, name in targets(statement, importer, path.name == "__init__.py", modules):
                if module.split(".")[0] == folder.name:
                    found.append(Import(importer, module, name, statement.lineno, at_import))
    return found


@cache
def package_imports() -> list[Import]:
    """List the imports within the plugin."""
    return imports_of(REPOSITORY / PACKAGE)


def room(module: str) -> str:
    """Return the part of the package that a module belongs to; an empty string for the package itself."""
    return module.split(".")[1] if "." in module else ""


def cycle_in(imports: list[Import]) -> list[str]:
    """Return the modules of one circle of imports that are executed at import time; an empty list without a circle."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        if found.at_import:
            graph.setdefault(found.importer, set()).add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


# What the package promises


@pytest.mark.parametrize("name", ALLOWED, ids=[f"room {name}" for name in ALLOWED])
def test_a_room_imports_only_from_the_rooms_beneath_it(name: str) -> None:
    wrong = [
        found
        for found in package_imports()
        if room(found.importer) == name and room(found.imported) not in {*ALLOWED[name], ""}
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_nothing_but_the_version_comes_from_the_packages_entrance() -> None:
    """Names that `adt_plugin/__init__.py` passes on would be a way round the rooms; the command line may take them."""
    entrance = [found for found in package_imports() if found.imported == PACKAGE and found.importer != f"{PACKAGE}.__main__"]
    wrong = [found for found in entrance if found.name != "__version__"]
    assert not wrong, "\n".join(map(str, wrong))


def test_nothing_imports_the_command_line() -> None:
    wrong = [found for found in package_imports() if found.imported == f"{PACKAGE}.__main__"]
    assert not wrong, "\n".join(map(str, wrong))


def test_no_module_needs_itself_to_be_imported() -> None:
    assert cycle_in(package_imports()) == []


def test_the_rule_covers_every_folder_of_the_package() -> None:
    folders = {path.parent.name for path in (REPOSITORY / PACKAGE).glob("*/__init__.py")}
    assert folders <= set(ALLOWED)


ALONE = """
import importlib, pkgutil, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top == "library" or (top == "adt_plugin" and rest and rest.split(".")[0] != "core"):
            raise ImportError(f"the core asked for {name}")

sys.meta_path.insert(0, Wall())
import adt_plugin.core as core
names = [module.name for module in pkgutil.walk_packages(core.__path__, "adt_plugin.core.", onerror=print)]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_the_whole_core_can_be_imported_where_nothing_else_of_the_package_can() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    core = [name for name in modules_of(REPOSITORY / PACKAGE) if name.startswith(f"{PACKAGE}.core.")]
    assert done.stdout.split() == [str(len(core))]


# Whether the walk sees what it must see


@pytest.mark.parametrize(
    ("source", "imported", "at_import"),
    [
        ("import pack.b.c", "pack.b.c", True),
        ("from pack.b import c", "pack.b.c", True),
        ("from pack.b.c import name", "pack.b.c", True),
        ("from .. import b", "pack.b", True),
        ("from ..b.c import name", "pack.b.c", True),
        ("from . import other", "pack.a", True),
        ("try:\n    import pack.b\nexcept ImportError: ...", "pack.b", True),
        ("class A:\n    import pack.b", "pack.b", True),
        ("def f():\n    if True:\n        import pack.b", "pack.b", False),
        ("class A:\n    async def f(self):\n        from pack import b", "pack.b", False),
        ("if TYPE_CHECKING:\n    import pack.b", "pack.b", False),
        ("if typing.TYPE_CHECKING: ...\nelse:\n    import pack.b", "pack.b", True),
    ],
)
def test_every_kind_of_import_is_seen(tmp_path: Path, source: str, imported: str, at_import: bool) -> None:
    for name in ("__init__", "a/__init__", "b/__init__", "b/c"):
        path = tmp_path / "pack" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "pack" / "a" / "importer.py").write_text(source)
    (found,) = imports_of(tmp_path / "pack")
    assert (found.importer, found.imported, found.at_import) == ("pack.a.importer", imported, at_import)


def test_a_circle_is_found_if_all_of_it_is_executed_at_import() -> None:
    circle = [Import("a", "b", "", 1, True), Import("b", "c", "", 1, True), Import("c", "a", "", 1, True)]
    assert set(cycle_in(circle)) == {"a", "b", "c"}
    assert cycle_in([*circle[:2], Import("c", "a", "", 1, False)]) == []
