"""The host's block swap (`--blocks_to_swap`) in a turn: forward only while it walks, as in the host's own previews.

In training mode a forward call leaves the first blocks on the CPU, and the hooks of its backward pass bring them back. So the
unroll, which has no backward pass, needs the host's other mode; a replay is one forward and one backward call, as in training.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from adt_plugin.core.diffusion.unroll import Unroll, UnrollFunction


def offloaders_of(network: nn.Module) -> list[Any]:
    """Return what swaps the network's blocks; none without `--blocks_to_swap`."""
    return [part for part in vars(network).values() if callable(getattr(part, "set_forward_only", None))]


@contextmanager
def forward_only(network: nn.Module) -> Iterator[None]:
    """Let the network be called without backward passes inside; its blocks lie as for the next training call afterwards.

    They do so by themselves after whole calls, and are put there if one was broken off.
    """
    offloaders: Any = offloaders_of(network)
    host: Any = network
    if not offloaders:
        yield
        return
    for offloader in offloaders:
        offloader.set_forward_only(True)
    host.prepare_block_swap_before_forward()  # a backward pass that stopped early has left some where they were
    whole = False
    try:
        yield
        whole = True
    finally:
        for offloader in offloaders:
            offloader.set_forward_only(False)  # waits for what is on its way
        if not whole:
            host.prepare_block_swap_before_forward()


def walking_forward_only(unroll: UnrollFunction, network: nn.Module) -> UnrollFunction:
    """Return the same unroll, for a network whose blocks may be swapped."""

    @functools.wraps(unroll)
    def walked(*args: Any, **kwargs: Any) -> Unroll:
        with forward_only(network):
            return unroll(*args, **kwargs)

    return walked
