"""Bytes of the tensors that are alive, real or fake."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Counts every tensor's storage once, from the operation that makes it until nothing holds it.

    What an allocator rounds up, and scratch space inside an operation, are not seen.

    Args:
        resident: tensors that are there already.

    Attributes:
        now: bytes alive.
        peak: the most since the beginning, or since that of the last `peak_of`.
    """

    def __init__(self, resident: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.storages: weakref.WeakSet[Any] = weakref.WeakSet()
        self.now = self.peak = 0
        for tensor in resident:
            self._note(tensor)

    def peak_of(self, part: Callable[[], object]) -> int:
        """Return the most bytes alive during a call."""
        self.peak = self.now
        part()
        return self.peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.storages:
            return
        self.storages.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, nbytes: int) -> None:
        self.now -= nbytes
