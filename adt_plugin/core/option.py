"""What an option is: a field of a dataclass, with its help and its range, which is checked when the dataclass is made.

Standard library only, as the options themselves.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any

from adt_plugin.core.errors import ConfigError

PREFIX = "adt_"
"""Stands before an option's name wherever a user writes it: `--adt_steps`, `adt_steps = 5`."""


def option(
    default: Any,
    help_en: str,
    help_ja: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Define a dataclass field that is an option.

    Args:
        default: also decides the option's type: bool, int, float or str.
        help_en, help_ja: what a person gets from it.
        low, high: inclusive bounds of a number.
        choices: all values of a word; empty allows any.
    """
    return field(default=default, metadata={"help": (help_en, help_ja), "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Options:
    """What every group has: each value is checked against its option's range when it is made."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            _check_range(spec, getattr(self, spec.name))


def flag_of(spec: Field[Any]) -> str:
    """Return an option's flag, such as `--adt_steps`."""
    return f"--{PREFIX}{spec.name}"


def _check_range(spec: Field[Any], value: Any) -> None:
    rules = spec.metadata
    if rules["choices"] and value not in rules["choices"]:
        raise ConfigError(f"{flag_of(spec)} must be one of {', '.join(rules['choices'])}, got {value!r}.")
    if rules["low"] is not None and not (rules["low"] <= value <= rules["high"]):  # a NaN fails both comparisons
        raise ConfigError(f"{flag_of(spec)} must be from {rules['low']:g} to {rules['high']:g}, got {value!r}.")
    if value == "":
        raise ConfigError(f"{flag_of(spec)} is empty: give it a value or leave it out.")
