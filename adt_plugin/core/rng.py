"""Random state: what belongs to the host is left as it was found, what belongs to the plugin is reproducible."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the global generators of torch (CPU and every device in use), `random` and NumPy on exit, also after an error."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    device_states = [(module, module.get_rng_state_all()) for module in _devices_in_use()]
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        for module, states in device_states:
            module.set_rng_state_all(states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)


def _devices_in_use() -> list[Any]:
    """Return the modules of devices that have been initialised: `torch.manual_seed` reseeds all of them.

    `torch.cuda`, `torch.xpu`, and that of a backend which PyTorch does not know by itself, such as `torch.npu`.
    """
    names = ("cuda", "xpu", torch._C._get_privateuse1_backend_name())
    modules = [getattr(torch, name, None) for name in names]
    return [module for module in modules if module is not None and module.is_available() and module.is_initialized()]


def seed_everything(seed: int) -> None:
    """Seed all global generators, so that dropout of every kind draws the same again. Call inside `preserved_rng`."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed in [0, 2^31) from a CPU generator."""
    return int(torch.randint(2**31 - 1, (1,), generator=generator))


def normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers of a tensor's shape and precision, where it lies.

    On a device by a generator of its own, seeded with a draw: millions of numbers from the CPU would take longer than the
    work that they are for.

    Args:
        generator: on the CPU.
    """
    if tensor.device.type != "cpu":
        generator = torch.Generator(tensor.device).manual_seed(draw_seed(generator))
    return torch.randn(tensor.shape, generator=generator, device=tensor.device).to(tensor.dtype)
