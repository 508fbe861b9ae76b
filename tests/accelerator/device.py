"""`card`: a make-believe accelerator, whose tensors lie in the computer's memory and behave as if they did not.

Its tensors say `device='card:0'`. An operation that meets one of them and a CPU tensor fails as it would with CUDA, a CPU
generator cannot draw on it, and whatever makes the program wait for a real card is counted, as is every byte that travels.
It is PyTorch's own place for foreign devices (PrivateUse1), filled from Python: `install` before the first backward pass of
the process, since the autograd engine counts devices once.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "card"
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""Operations that take CPU tensors as indices, as CUDA's do: at the price of a copy that is waited for."""


@dataclass
class Traffic:
    """What a block of code asked of the card.

    Attributes:
        waits: how often each place waited for the card; a place is `file:function` of the plugin's.
        to_card, from_card: bytes of the copies that each place made.
        copies: how many copies over the border each place made, in either direction.
        draws: random draws from the card's own generator.
    """

    waits: Counter[str] = field(default_factory=Counter)
    to_card: Counter[str] = field(default_factory=Counter)
    from_card: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    draws: int = 0


WATCHES: list[Traffic] = []
"""The blocks that are being watched now."""


@contextmanager
def watched() -> Iterator[Traffic]:
    """Count what happens inside."""
    traffic = Traffic()
    WATCHES.append(traffic)
    try:
        yield traffic
    finally:
        WATCHES.remove(traffic)


def note_wait() -> None:
    for traffic in WATCHES:
        traffic.waits[place()] += 1


def note_copy(source: Tensor, to_card: bool, blocking: bool) -> None:
    if not to_card and not blocking:
        raise RuntimeError("a copy from the card without waiting may be read before it has arrived")
    if blocking:
        note_wait()
    for traffic in WATCHES:
        traffic.copies[place()] += 1
        (traffic.to_card if to_card else traffic.from_card)[place()] += source.numel() * source.element_size()


def place() -> str:
    """Where in the plugin the program is."""
    frame = sys._getframe()
    while frame is not None:
        name, function = frame.f_code.co_filename, frame.f_code.co_name
        if "/adt_plugin/" in name.replace(os.sep, "/") and not function.startswith("<"):
            return f"{Path(name).name}:{function}"
        frame = frame.f_back
    return "outside"


class CardTensor(Tensor):
    """A tensor on the card; `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> CardTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: object) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype})"  # its values would be a wait

    def tolist(self) -> Any:
        """PyTorch knows no list of a subclass."""
        return self.cpu().tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Makes `Module.to` keep the same Parameter object, as `param.data = ...` does for real devices."""
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> CardTensor:
        return CardTensor(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple, kwargs: dict) -> Any:
    """Run one operation that has to do with the card."""
    if func in COPIES:
        return copy(func, args, kwargs)
    if func is aten.set_.source_Tensor:
        raise NotImplementedError("card tensors cannot be given another storage")
    leaves = tree_leaves((args, kwargs))
    from_card = any(isinstance(leaf, CardTensor) for leaf in leaves)
    if from_card:
        refuse_mixed_devices(func, leaves)
    given = [leaf for leaf in leaves if isinstance(leaf, torch._C.Generator)]
    if any(generator._cdata not in ON_CARD for generator in given):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' ({func})")
    if must_wait(func, args):
        note_wait()
    result = drawing(func, bool(given), lambda: func(*values(args), **values(on_cpu(kwargs))))
    stays = "device" not in kwargs or kwargs["device"] is None or is_card(kwargs["device"])
    wrapped = tree_map_only(Tensor, CardTensor, result) if stays else result
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if from_card else wrapped


def copy(func: Any, args: tuple, kwargs: dict) -> Any:
    """Copy to the card, from it, or within it; blocking copies over the border wait for the card in both directions."""
    if func is aten._to_copy.default:
        source, target = args[0], kwargs.get("device")
        leaves, enters = isinstance(source, CardTensor), target is None or is_card(target)
        blocking = not kwargs.get("non_blocking", False)
        result = func(values(source), **on_cpu(kwargs))
        if leaves and enters:
            return CardTensor(result)
        note_copy(source, bool(enters), blocking)
        return CardTensor(result) if enters else result
    source, target = (args[0], args[1]) if func is aten._copy_from.default else (args[1], args[0])
    blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if isinstance(source, CardTensor) != isinstance(target, CardTensor):
        note_copy(source, isinstance(target, CardTensor), blocking)
    values(target).copy_(values(source))
    return target


def values(tree: Any) -> Any:
    """Card tensors by what they hold."""
    return tree_map_only(CardTensor, lambda tensor: tensor.inner, tree)


def on_cpu(kwargs: dict) -> dict:
    return kwargs | ({"device": torch.device("cpu")} if kwargs.get("device") is not None else {})


def is_card(device: Any) -> bool:
    return torch.device(device).type == NAME


def refuse_mixed_devices(func: Any, leaves: list[Any]) -> None:
    """As CUDA's operations do: a CPU tensor may come along as a number (0-dim) and as an index."""
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or isinstance(leaf, CardTensor) or leaf.dim() == 0:
            continue
        if func in INDEXING and not leaf.is_floating_point():
            note_copy(leaf, to_card=True, blocking=True)
            continue
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two, {NAME}:0 and cpu! ({func})")


def must_wait(func: Any, args: tuple) -> bool:
    """Whether the program needs a value of the card's, or a shape that depends on one, to go on."""
    if func is aten.index.Tensor or func in INDEXING:
        return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


# Random numbers of the card's own


class CardRandom:
    """The state of the card's generator, which no draw on the CPU touches."""

    state = torch.Generator().manual_seed(0).get_state()


ON_CARD: set[int] = set()
"""Addresses of the card's generators: the object itself does not come through PyTorch."""


class Generator(torch._C.Generator):
    """`torch.Generator`, also of the card's, which PyTorch cannot make from Python."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls)
        if is_card(device):
            ON_CARD.add(self._cdata)
        return self

    def __init__(self, device: Any = "cpu") -> None: ...

    def __del__(self) -> None:
        ON_CARD.discard(self._cdata)


def drawing(func: Any, generator: bool, call: Callable[[], Any]) -> Any:
    """Let random operations that were given no generator draw from the card's own."""
    if torch.Tag.nondeterministic_seeded not in func.tags or generator:
        return call()
    for traffic in WATCHES:
        traffic.draws += 1
    on_the_cpu = torch.default_generator.get_state()
    torch.default_generator.set_state(CardRandom.state)
    try:
        return call()
    finally:
        CardRandom.state = torch.default_generator.get_state()
        torch.default_generator.set_state(on_the_cpu)


def seed_all(seed: int) -> None:
    CardRandom.state = torch.Generator().manual_seed(seed).get_state()


def restore_all(states: list[Tensor]) -> None:
    CardRandom.state = states[0]


def device_module() -> Any:
    """What `torch.card` is: as much of `torch.cuda` as PyTorch asks a device for."""
    return SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        _initialized=True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        device=lambda index: nullcontext(),
        synchronize=lambda device=None: note_wait(),
        manual_seed=seed_all,
        manual_seed_all=seed_all,
        get_rng_state=lambda device=0: CardRandom.state,
        set_rng_state=lambda state, device=0: restore_all([state]),
        get_rng_state_all=lambda: [CardRandom.state],
        set_rng_state_all=restore_all,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    )


# Half precision by autocast, for the operations that carry weights

AUTOCAST = (
    aten.linear.default,
    aten.conv2d.default,
    aten.matmul.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.mm.default,
)


def autocasting(func: Any) -> Callable[..., Any]:
    def cast_and_call(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() and tensor.device.type == NAME else tensor

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return func(*tree_map_only(Tensor, cast, args), **tree_map_only(Tensor, cast, kwargs))

    return cast_and_call


LIBRARIES: list[torch.library.Library] = []
"""Registrations live as long as these objects."""


def install() -> torch.device:
    """Make the device known to PyTorch, once in a process and before its first backward pass."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if not LIBRARIES:
        _setup_privateuseone_for_python_backend(NAME, backend_module=device_module())
        torch.Generator = Generator  # type: ignore[misc]
        torch.__future__.set_swap_module_params_on_conversion(True)  # `Module.to` keeps every Parameter object
        everything, some = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        everything.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
        everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        # `torch.tensor` calls this one past `__torch_dispatch__`, where a fallback does not reach it
        some.impl("_copy_from", lambda *args, **kwargs: copy(aten._copy_from.default, args, kwargs), "PrivateUse1")
        for func in AUTOCAST:
            some.impl(func._schema.name.split("::")[1], autocasting(func), "AutocastPrivateUse1")
        LIBRARIES.extend((everything, some))
    return torch.device(NAME, 0)
