"""Files are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adt_plugin.core.run.files import replacement, write_atomically


def test_writing_replaces_the_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.txt"
    write_atomically(path, "one")
    write_atomically(path, "zwei ±")
    assert path.read_text(encoding="utf-8") == "zwei ±"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), replacement(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_file_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is made with all that it lies in."""
    path, seen, sync = tmp_path / "a" / "b" / "state", [], os.fsync

    def noted(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_size, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_atomically(path, "whole")
    assert seen == [(5, False)] and path.read_text() == "whole"
