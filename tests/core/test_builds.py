"""A torchvision that does not fit torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adt_plugin.compare.features import Embedder
from adt_plugin.core.builds import check_torchvision
from adt_plugin.core.errors import ConfigError
from adt_plugin.cost.cli import cost_main


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of another torch in front of whatever is installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nmore')"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("broken")
def test_compare_names_torchvision_and_the_doctor_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError) as caught:
        Embedder("nobody/nothing", "cpu")
    said = str(caught.value)
    assert said.startswith("torchvision") and "cannot be imported (operator torchvision::nms does not exist)" in said
    assert "adt doctor" in said and "AutoImageProcessor" not in said and "\n" not in said


@pytest.mark.usefixtures("broken")
def test_cost_ends_with_the_same_sentence() -> None:
    with pytest.raises(SystemExit, match="^adt_plugin: torchvision .*adt doctor"):
        cost_main(["--model", "sd15"])


def test_a_python_without_torchvision_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    check_torchvision()
