"""The patches of the host: how a function is found, checked, wrapped everywhere it is known, and given back.

The same seam lives in different modules of different host versions, and other modules hold the function by name, so a
patch replaces every attribute of every loaded module that is the original.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from adt_plugin.core.errors import AdtError

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]
Undo = Callable[[], None]
Result = TypeVar("Result")


class SeamError(AdtError, RuntimeError):
    """The host is not as this plugin knows it; the message says which seam, where, what was expected and what was found."""


@dataclass(frozen=True)
class Seam:
    """A function of the host that the plugin wraps.

    Attributes:
        function: its name; `Class.method` for a method.
        modules: where it may be defined, newest host first.
        parameters: the names of its first parameters, which the wrapper relies on.
        purpose: what the plugin needs it for, as a noun phrase for messages.
    """

    function: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    purpose: str


def ending_the_run(function: Callable[..., Result]) -> Callable[..., Result]:
    """Wrap what the host calls: the plugin's own errors end the run with their sentence alone, without a traceback.

    Raises:
        SystemExit: in place of an `AdtError`; every other exception passes.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Result:
        try:
            return function(*args, **kwargs)
        except AdtError as error:
            raise SystemExit(f"adt_plugin: {error}") from error

    return wrapper


def resolve(seam: Seam) -> tuple[ModuleType, Function]:
    """Return the loaded module that defines the seam's function, and the function.

    Raises:
        SeamError: no candidate defines it.
    """
    for name in seam.modules:
        module = sys.modules.get(name)
        function = _attribute(module, seam.function)
        if module is not None and callable(function) and getattr(inspect.unwrap(function), "__module__", None) == name:
            return module, function
    looked_at = ", ".join(f"{name} ({_place(name)})" for name in seam.modules)
    raise SeamError(f"the seam {seam.function} ({seam.purpose}) was not found: expected its definition in one of {looked_at}")


def first_found(seams: Sequence[Seam]) -> Seam:
    """Return the first seam that the host has.

    Raises:
        SeamError: it has none of them.
    """
    for seam in seams[:-1]:
        with contextlib.suppress(SeamError):
            resolve(seam)
            return seam
    resolve(seams[-1])
    return seams[-1]


def _attribute(module: ModuleType | None, dotted: str) -> Any:
    """Return a function of the module or a method of one of its classes; None if there is none."""
    return functools.reduce(lambda owner, name: getattr(owner, name, None), dotted.split("."), module)


def check_signature(seam: Seam, module: ModuleType, function: Function) -> None:
    """Compare the function's first parameters with those that the wrapper relies on.

    Raises:
        SeamError: names file, expectation and finding.
    """
    found = tuple(inspect.signature(function).parameters)
    if found[: len(seam.parameters)] != seam.parameters:
        raise SeamError(
            f"the seam {seam.function} ({seam.purpose}) in {_place(module.__name__)} has changed: expected first parameters "
            f"({', '.join(seam.parameters)}), found ({', '.join(found)})"
        )


def check(seam: Seam) -> None:
    """Check that the seam can be patched, without patching it.

    Raises:
        SeamError: it cannot.
    """
    check_signature(seam, *resolve(seam))


def patch(seam: Seam, wrap: Wrap) -> Undo:
    """Replace the seam's function by `wrap(function)` wherever a loaded module holds it. Idempotent.

    An `AdtError` that is raised inside ends the run with its sentence.

    Returns:
        What gives the host its function back.

    Raises:
        SeamError: it was not found, or its signature is not the expected one.
    """
    module, function = resolve(seam)
    if getattr(function, "_adt_undo", None) is not None:
        return function._adt_undo  # type: ignore[attr-defined]
    check_signature(seam, module, function)
    if "." in seam.function:
        owner, _, name = seam.function.rpartition(".")
        return patch_attribute(_attribute(module, owner), name, wrap)
    wrapper = functools.wraps(function)(ending_the_run(wrap(function)))

    def undo() -> None:
        rebind(wrapper, function)

    wrapper._adt_undo = undo  # type: ignore[attr-defined]
    rebind(function, wrapper)
    return undo


def patch_attribute(owner: Any, name: str, wrap: Wrap) -> Undo:
    """Replace one method of an object or class by `wrap(method)`, as `patch` does. Idempotent.

    A method that the owner inherits is wrapped for the owner alone, whether or not it is patched where it comes from.

    Raises:
        SeamError: the owner has no such method.
    """
    method = getattr(owner, name, None)
    if not callable(method):
        raise SeamError(f"the seam {type(owner).__name__}.{name} was not found: expected a method, found {method!r}")
    own = vars(owner).get(name)
    if getattr(own, "_adt_undo", None) is not None:
        return own._adt_undo
    wrapper = functools.wraps(method)(ending_the_run(wrap(method)))

    def undo() -> None:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    wrapper._adt_undo = undo  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)
    return undo


def rebind(old: Function, new: Function) -> None:
    """Replace `old` by `new` in the namespace of every loaded module that holds it."""
    for module in list(sys.modules.values()):
        namespace = getattr(module, "__dict__", None)
        if namespace is None or id(old) not in map(id, list(namespace.values())):  # said at once of thousands of modules
            continue
        for name in [name for name, value in list(namespace.items()) if value is old]:
            namespace[name] = new


def _place(module_name: str) -> str:
    module = sys.modules.get(module_name)
    return getattr(module, "__file__", None) or "not loaded"
