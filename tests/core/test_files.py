"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adt_plugin.core.run.files import replacement, tensor_shapes, write_atomically


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
    with pytest.raises(KeyboardInterrupt), replacement(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_link_that_lies_where_the_temporary_file_would_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "state"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    (tmp_path / ".state.guessed.partial").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(path, "new")
    assert victim.read_text() == "precious" and not path.exists()


def test_two_writes_choose_two_names(tmp_path: Path) -> None:
    with replacement(tmp_path / "x") as first, replacement(tmp_path / "x") as second:
        assert first.name != second.name
        assert len(list(tmp_path.glob(".x.*.partial"))) == 2


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault comes late, where a disk with delayed allocation says it."""
    path = tmp_path / "state"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_atomically(tmp_path / "state", "new")
    (tmp_path / "other").write_text("new")
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_content_is_on_the_disk_before_the_file_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is made with all that it lies in."""
    path, seen, sync = tmp_path / "a" / "b" / "state", [], os.fsync

    def noted(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_size, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_atomically(path, "whole")
    assert seen == [(5, False)] and path.read_text() == "whole"


@pytest.mark.parametrize("name", ["missing.safetensors", "pickled.pt", "damaged.safetensors", ""])
def test_what_holds_no_tensors_has_no_shapes(tmp_path: Path, name: str) -> None:
    for file in ("pickled.pt", "damaged.safetensors"):
        (tmp_path / file).write_bytes(b"\x05\0\0\0\0\0\0\0{oops")
    assert tensor_shapes(tmp_path / name) == {}


def test_shapes_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, path, metadata={"made": "here"})
    assert tensor_shapes(path) == {"a": [2, 3], "b": []}
