"""Random state: what belongs to the host is left as it was found, what belongs to the plugin is reproducible."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Restore the global generators of torch (CPU and `device`), `random` and NumPy on exit, also after an error."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type in ("cuda", "xpu") else []
    try:
        with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def seed_everything(seed: int) -> None:
    """Seed all global generators, so that dropout of every kind draws the same again. Call inside `preserved_rng`."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def draw_seed(generator: torch.Generator) -> int:
    """A seed in [0, 2^31) from a CPU generator."""
    return int(torch.randint(2**31 - 1, (1,), generator=generator))
