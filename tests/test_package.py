"""The package's entrance: its public names, loaded late and typed nevertheless."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from mypy import api

import adt_plugin

REPOSITORY = Path(__file__).resolve().parents[1]

CONFIG = """
[mypy]
mypy_path = {repository}
namespace_packages = False
follow_imports = silent
ignore_missing_imports = True
[mypy-torch.*,diffusers.*,transformers.*,safetensors.*,toml.*]
follow_imports = skip
"""


def checked(code: str, folder: Path) -> str:
    """Return what mypy says of code that uses the plugin; the libraries beneath it are left out, which takes seconds less."""
    (folder / "mypy.ini").write_text(CONFIG.format(repository=REPOSITORY))
    (folder / "user.py").write_text(code)
    options = ["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache"), str(folder / "user.py")]
    said, problems, _ = api.run(options)
    assert not problems
    return said


def test_a_type_checker_sees_what_every_public_name_is(tmp_path: Path) -> None:
    names = adt_plugin.__all__
    code = "import adt_plugin\n" + "".join(f"reveal_type(adt_plugin.{name})\n" for name in names)
    types = dict(zip(names, re.findall(r'Revealed type is "(.*)"', checked(code, tmp_path)), strict=True))
    assert types["ADTConfig"].endswith(") -> adt_plugin.core.config.ADTConfig")
    assert types["AdversarialTurn"].endswith(") -> adt_plugin.core.turn.AdversarialTurn")
    assert re.search(r"-> adt_plugin\.core\.discriminator\.\w+\.Discriminator$", types["Discriminator"])
    assert re.search(r"-> adt_plugin\.core\.discriminator\.\w+\.FrozenBackbone$", types["FrozenBackbone"])
    assert types["register"] == "def ()"
    assert all(revealed.startswith("def (") for revealed in types.values()), types


def test_a_type_checker_refuses_a_name_that_is_not_there(tmp_path: Path) -> None:
    said = checked("import adt_plugin\nadt_plugin.Discriminatr\n", tmp_path)
    assert 'Module has no attribute "Discriminatr"' in said


@pytest.mark.parametrize("name", adt_plugin.__all__)
def test_every_public_name_is_the_one_that_its_module_defines(name: str) -> None:
    found = getattr(adt_plugin, name)
    assert found.__name__ == name and found is getattr(import_module(found.__module__), name)


def test_the_public_names_are_listed_and_others_refused() -> None:
    assert {*adt_plugin.__all__, "__version__"} <= set(dir(adt_plugin))
    with pytest.raises(AttributeError, match="module 'adt_plugin' has no attribute 'Discriminatr'"):
        _ = adt_plugin.Discriminatr  # type: ignore[attr-defined]
