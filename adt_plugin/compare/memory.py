"""A device whose memory runs out in a comparison, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adt_plugin.core.errors import ConfigError
from adt_plugin.core.out_of_memory import OUT_OF_MEMORY, first_line

NO_MEMORY = ("out of memory", "allocate memory")
"""What PyTorch says of Apple's devices and of the CPU, by a plain RuntimeError."""


@contextmanager
def memory_for(what: str, way_out: str) -> Iterator[None]:
    """Turn a device's running out of memory within the block into one sentence.

    Raises:
        ConfigError: instead of PyTorch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, OUT_OF_MEMORY) and not any(sign in str(error) for sign in NO_MEMORY):
            raise
        raise ConfigError(
            f"the device's memory does not suffice for {what} ({first_line(error)}): {way_out}. What is made is kept, the same "
            "command goes on from there."
        ) from error
