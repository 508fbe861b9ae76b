"""The options as users write them: flags of a command line, keys of a TOML file, and keys of a saved file's metadata."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any

from adt_plugin import __version__
from adt_plugin.core.config import ADTConfig, without_folder
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.option import PREFIX, flag_of

LEVELS = {
    "basic": ("weight", "begin", "cfg_scale", "memory", "backbone", "pictures_every"),
    "advanced": (
        *(
            "diversity",
            "lr",
            "every",
            "warmup",
            "steps",
            "start_min",
            "start_max",
            "decode_crop",
            "decoder",
            "decode_dtype",
            "offload",
        ),
        *("flow_shift", "disc_lr", "disc_penalty", "disc_weights", "max_bad_turns", "profile", "seed"),
    ),
}
"""Who has use for which options; every other one is for research."""

TITLES = {
    "basic": ("ADT", "Adversarial Diffusion Tuning (adt_plugin): what is worth setting"),
    "advanced": ("ADT, advanced", "for cards, models and data that need it"),
    "research": ("ADT, for research", "to study the method with"),
}
"""Heading and line of each level's options in the help."""

PATHS = ("backbone", "decoder", "disc_weights")
"""Options that may hold a path of the user's machine."""


def option_names() -> list[str]:
    """Return all keys as a namespace and a TOML file spell them, the switch `adt` first."""
    return ["adt"] + [PREFIX + spec.name for spec in fields(ADTConfig)]


def reject_unknown_keys(keys: Iterable[str]) -> None:
    """Stop at a misspelt key, which the host's `--config_file` would silently accept.

    Raises:
        ConfigError: names the key and the nearest valid one.
    """
    valid = option_names()
    for key in keys:
        if key.startswith(PREFIX) and key not in valid:
            nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown option {key}: did you mean {nearest}?")


def given_names(args: argparse.Namespace, argv: Iterable[str], settings: Iterable[str] = ()) -> list[str]:
    """Return the `adt_*` options that a user has set, in the order of the table.

    Args:
        args: parsed; a value that is not the default has been set.
        argv: the command line.
        settings: keys of a file of options.
    """
    flags = {word.partition("=")[0] for word in argv}
    changed = {
        PREFIX + spec.name for spec in fields(ADTConfig) if getattr(args, PREFIX + spec.name, spec.default) != spec.default
    }
    written = changed | {flag.removeprefix("--") for flag in flags} | set(settings)
    return [name for name in option_names() if name != "adt" and name in written]


def suggesting(parser: argparse.ArgumentParser) -> None:
    """Let a parser's complaint about an unknown `--adt_*` name the nearest option."""
    complain = parser.error

    def error(message: str) -> Any:
        valid = ["--" + name for name in option_names()]
        words = [word.partition("=")[0] for word in message.split() if word.startswith("--adt")]
        wrong = [word for word in words if word not in valid] if "unrecognized arguments" in message else []
        nearest = {word: difflib.get_close_matches(word, valid, n=1, cutoff=0.0)[0] for word in wrong}
        complain(message + "".join(f"; for {word}, did you mean {near}?" for word, near in nearest.items()))

    vars(parser)["error"] = error


def add_adt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--adt` and every `--adt_*` to a parser, in a group for each level. Idempotent."""
    if any("--adt" in action.option_strings for action in parser._actions):
        return
    suggesting(parser)
    groups = {level: parser.add_argument_group(*titles) for level, titles in TITLES.items()}
    groups["basic"].add_argument(
        "--adt",
        action="store_true",
        help="train with adversarial supervision of the sampler's output / 敵対的拡散チューニングを有効にする",
    )
    for spec in fields(ADTConfig):
        _add_option(groups[level_of(spec.name)], spec)


def level_of(name: str) -> str:
    """Return the level of an option, a key of `TITLES`."""
    return next((level for level, names in LEVELS.items() if name in names), "research")


def _add_option(group: argparse._ArgumentGroup, spec: Field[Any]) -> None:
    help_text = " / ".join(spec.metadata["help"])
    if _type_of(spec) is bool:
        group.add_argument(flag_of(spec), action="store_true", help=help_text)
        return
    group.add_argument(
        flag_of(spec),
        type=_type_of(spec),
        default=spec.default,
        choices=spec.metadata["choices"] or None,
        help=f"{help_text} (default: {spec.default})".replace("%", "%%"),
    )


def from_namespace(args: argparse.Namespace) -> ADTConfig:
    """Read the options from parsed arguments, which may hold raw TOML values.

    Raises:
        ConfigError: an unknown `adt_*` key (the host lets those of a TOML file pass), a wrong type, or a value out of range.
    """
    given = vars(args)
    reject_unknown_keys(given)
    present = [spec for spec in fields(ADTConfig) if PREFIX + spec.name in given]
    return ADTConfig(**{spec.name: _converted(spec, given[PREFIX + spec.name]) for spec in present})


def metadata(config: ADTConfig) -> dict[str, str]:
    """Return `ss_adt_*` strings for saved files; a local path appears by its last part only."""
    values = {spec.name: str(getattr(config, spec.name)) for spec in fields(config)}
    values |= {name: without_folder(values[name]) for name in PATHS}
    return {"ss_adt_version": __version__} | {f"ss_{PREFIX}{name}": value for name, value in values.items()}


def _type_of(spec: Field[Any]) -> type:
    """Return the option's Python type: bool, int, float or str."""
    return type(spec.default)


def _converted(spec: Field[Any], value: Any) -> Any:
    """Convert a raw command-line or TOML value to the option's type; TOML lists stand for comma-separated values."""
    flag, kind = flag_of(spec), _type_of(spec)
    if isinstance(value, (list, tuple)) and kind is str:
        return ",".join(str(part) for part in value)
    if isinstance(value, bool) or kind is bool:
        if not (isinstance(value, bool) and kind is bool):
            raise ConfigError(
                f"{flag} must be {'true or false' if kind is bool else f'of type {kind.__name__}'}, got {value!r}."
            )
        return value
    try:
        converted = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{flag} must be of type {kind.__name__}, got {value!r}.") from None
    if kind is int and converted != float(value):
        raise ConfigError(f"{flag} must be a whole number, got {value!r}.")
    return converted
