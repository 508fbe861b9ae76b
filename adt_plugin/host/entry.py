"""The two seams that are always there: the host's arguments, and its first look at them.

Without `--adt` nothing else of the host is touched.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from adt_plugin.core.config import ADTConfig, ConfigError, add_adt_arguments, reject_unknown_keys
from adt_plugin.host.seams import Function, Seam, SeamError, patch

ARGUMENTS = Seam(
    "add_training_arguments", ("library.args", "library.train_util"), ("parser",), "the --adt options in the host's parser"
)
VERIFICATION = Seam(
    "verify_training_args",
    ("library.args", "library.train_util"),
    ("args",),
    "the check of the options before models are loaded",
)


class _State:
    """What this process remembers of the host: why the options could not be added, and the session under way."""

    missing_options: SeamError | None = None
    session: Any = None


def install() -> None:
    """Patch both seams. Idempotent.

    The verification is patched first and by itself, so that a run that asks for ADT in a TOML file is stopped where the
    options could not be added.

    Raises:
        SeamError: the host's modules do not have one of them.
    """
    patch(VERIFICATION, _verifying)
    try:
        patch(ARGUMENTS, _adding_arguments)
    except SeamError as error:
        _State.missing_options = error
        raise
    _State.missing_options = None


def _adding_arguments(original: Function) -> Function:
    def add_training_arguments(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        result = original(parser, *args, **kwargs)
        add_adt_arguments(parser)
        return result

    return add_training_arguments


def _verifying(original: Function) -> Function:
    def verify_training_args(args: argparse.Namespace, *rest: Any, **kwargs: Any) -> Any:
        result = original(args, *rest, **kwargs)
        try:
            start(args)
        except (ConfigError, SeamError) as error:
            stop(error)
        return result

    return verify_training_args


def start(args: argparse.Namespace) -> None:
    """Begin a session if the run asks for one; called before the host loads anything.

    Raises:
        ConfigError: an option or a combination that cannot work.
        SeamError: the host lacks a seam that the run needs.
    """
    if _State.session is not None:  # an earlier run in this process
        _State.session.uninstall()
        _State.session = None
    wanted = getattr(args, "adt", False)
    if not isinstance(wanted, bool):
        raise ConfigError(f"adt must be true or false, got {wanted!r}.")
    reject_unknown_keys(vars(args))
    if not wanted:
        return
    if _State.missing_options is not None:
        raise _State.missing_options
    from adt_plugin.host.checks import check_host_options
    from adt_plugin.host.session import Session

    config = ADTConfig.from_namespace(args)
    family = check_host_options(args, config)
    session = Session(config, args, family)
    session.install()
    _State.session = session


def stop(error: Exception) -> NoReturn:
    """End the run with the error's sentence alone, without a traceback."""
    raise SystemExit(f"adt_plugin: {error}") from error
