"""A warning is an error in this suite, but for what breaks as one."""

from __future__ import annotations

import warnings

import pytest


@pytest.mark.parametrize("kind", ["SwigPyPacked", "SwigPyObject", "swigvarlink"])
def test_what_swig_says_while_sentencepiece_is_imported_is_none(kind: str) -> None:
    """On Python 3.12; the suite passed, and the interpreter crashed as it ended."""
    warnings.warn(f"builtin type {kind} has no __module__ attribute", DeprecationWarning, stacklevel=1)


def test_any_other_deprecation_is_one() -> None:
    with pytest.raises(DeprecationWarning):
        warnings.warn("builtin type other has no __module__ attribute", DeprecationWarning, stacklevel=1)
