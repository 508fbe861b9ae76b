"""The command that fetches a model has the name that the installed huggingface_hub gives it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from adt_plugin.core import hub


@pytest.mark.parametrize(
    ("installed", "command"),
    [("0.24.5", "huggingface-cli"), ("0.34.3", "hf"), ("1.2.0rc1", "hf"), ("unknown", "hf"), (None, "hf")],
)
def test_the_command_is_that_of_the_installed_version(
    monkeypatch: pytest.MonkeyPatch, installed: str | None, command: str
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(hub, "version", version)
    assert hub.download_command("some/model") == f"{command} download some/model"
