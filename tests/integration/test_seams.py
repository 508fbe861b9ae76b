"""Finding, checking, wrapping and giving back the host's functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from adt_plugin.host.seams import Seam, SeamError, check, patch, patch_attribute

SEAM = Seam("noise", ("fake_new", "fake_old"), ("args", "latents"), "the latents")
SOURCE = "def noise(args, latents, device=None):\n    return args + latents\n"


def load(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = f"{name}.py"
    sys.modules[name] = module
    exec(source, module.__dict__)
    return module


@pytest.fixture
def modules() -> Iterator[dict[str, ModuleType]]:
    """The function is defined in the older place, re-exported by value, and imported by name under another one."""
    old = load("fake_old", SOURCE)
    user = load("fake_user", "from fake_old import noise as renamed, noise\n")
    yield {"old": old, "user": user}
    for name in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[name]


def doubled(original):  # noqa: ANN001, ANN201
    return lambda *args, **kwargs: 2 * original(*args, **kwargs)


def test_before_during_and_after(modules: dict[str, ModuleType]) -> None:
    original = modules["old"].noise
    assert modules["old"].noise(1, 2) == 3
    undo = patch(SEAM, doubled)
    assert modules["old"].noise(1, 2) == modules["user"].noise(1, 2) == modules["user"].renamed(1, 2) == 6
    undo()
    assert modules["old"].noise is modules["user"].noise is modules["user"].renamed is original


def test_patching_twice_wraps_once_and_gives_the_same_undo(modules: dict[str, ModuleType]) -> None:
    assert patch(SEAM, doubled) is patch(SEAM, doubled)
    assert modules["user"].noise(1, 2) == 6


def test_the_newer_place_wins_where_the_older_only_re_exports(modules: dict[str, ModuleType]) -> None:
    new = load("fake_new", SOURCE)
    modules["old"].noise = new.noise
    patch(SEAM, doubled)
    assert new.noise(1, 2) == modules["old"].noise(1, 2) == 6
    assert modules["user"].noise(1, 2) == 3  # another function, although of the same name


def test_a_name_taken_after_the_patch_is_given_back_too(modules: dict[str, ModuleType]) -> None:
    original = modules["old"].noise
    undo = patch(SEAM, doubled)
    late = load("fake_late", "from fake_old import noise\n")
    undo()
    assert late.noise is original


def test_a_wrapper_looks_like_its_original(modules: dict[str, ModuleType]) -> None:
    patch(SEAM, doubled)
    assert modules["old"].noise.__name__ == "noise"
    check(SEAM)  # its signature is still found


def test_a_missing_seam_names_itself_and_where_it_was_sought() -> None:
    with pytest.raises(
        SeamError, match=r"the seam noise \(the latents\) was not found: .* fake_new \(not loaded\), fake_old \(not loaded\)"
    ):
        check(SEAM)


def test_a_changed_signature_is_refused_before_anything_is_patched(modules: dict[str, ModuleType]) -> None:
    changed = load("fake_new", "def noise(args, scheduler, latents):\n    return 0\n").noise
    with pytest.raises(
        SeamError, match=r"fake_new.py has changed: expected .*\(args, latents\), found \(args, scheduler, latents\)"
    ):
        patch(SEAM, doubled)
    assert sys.modules["fake_new"].noise is changed


class Owner:
    def method(self) -> int:
        return 1


def test_a_method_of_an_object_is_wrapped_and_given_back() -> None:
    owner, other = Owner(), Owner()
    undo = patch_attribute(owner, "method", doubled)
    assert patch_attribute(owner, "method", doubled) is undo
    assert (owner.method(), other.method()) == (2, 1)
    undo()
    assert owner.method() == 1 and "method" not in vars(owner)


def test_a_method_of_a_class_is_wrapped_and_given_back() -> None:
    original = Owner.method
    undo = patch_attribute(Owner, "method", doubled)
    assert Owner().method() == 2
    undo()
    assert Owner.method is original


def test_a_missing_method_is_named() -> None:
    with pytest.raises(SeamError, match="Owner.backward was not found"):
        patch_attribute(Owner(), "backward", doubled)


class Heir(Owner):
    """Inherits `method`."""


def test_an_inherited_method_is_wrapped_for_the_heir_alone_though_its_base_is_patched() -> None:
    original = Owner.method
    undo_base = patch_attribute(Owner, "method", doubled)
    undo_heir = patch_attribute(Heir, "method", doubled)
    assert undo_heir is not undo_base
    assert (Owner().method(), Heir().method()) == (2, 4)
    undo_heir()
    assert (Owner().method(), Heir().method()) == (2, 2) and "method" not in vars(Heir)
    undo_base()
    assert Owner.method is original and Heir().method() == 1


def refusing(original: object) -> object:
    def refuse(*args: object) -> None:
        raise SeamError("one sentence")

    return refuse


def test_the_plugins_own_error_inside_a_patch_ends_the_run_with_its_sentence() -> None:
    owner = Owner()
    patch_attribute(owner, "method", refusing)
    with pytest.raises(SystemExit, match="^adt_plugin: one sentence$"):
        owner.method()


def test_the_hosts_own_error_inside_a_patch_passes_as_it_is() -> None:
    owner = Owner()
    owner.method = lambda: {}["missing"]
    patch_attribute(owner, "method", lambda original: lambda: original())
    with pytest.raises(KeyError, match="missing"):
        owner.method()
