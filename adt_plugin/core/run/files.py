"""Files that are whole or not there, and what a file of weights holds."""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""A new file, never one that somebody has put there before, nor what a link of that name leads to."""

LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header that is worth reading (the library's own limit)."""


@contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """Give a new file beside `path` to write to, which takes its place if the block ends without an error.

    An interruption leaves neither half a file under the final name nor the temporary one. The folder is made.

    Raises:
        OSError: the file cannot be made or written, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(temporary, EXCLUSIVE, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, by way of `replacement`; on the disk before the file takes its name."""
    with replacement(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return name -> shape from a safetensors file's header; nothing where it is damaged, of another kind or not there.

    Raises:
        OSError: the file is there and cannot be read.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        try:
            header = json.loads(file.read(length)) if length < LONGEST_HEADER else {}
        except ValueError:
            return {}
    return {name: entry["shape"] for name, entry in header.items() if "shape" in entry}
