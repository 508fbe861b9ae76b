"""The two seams that are always there: the host's arguments, and its first look at them.

Without `--adt` nothing else of the host is touched.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from adt_plugin.config import ADTConfig, ConfigError, add_adt_arguments, reject_unknown_keys
from adt_plugin.host.seams import Function, Seam, SeamError, check, patch

ARGUMENTS = Seam(
    "add_training_arguments", ("library.args", "library.train_util"), ("parser",), "the --adt options in the host's parser"
)
VERIFICATION = Seam(
    "verify_training_args",
    ("library.args", "library.train_util"),
    ("args",),
    "the check of the options before models are loaded",
)


def install() -> None:
    """Patch both seams, or neither. Idempotent.

    Raises:
        SeamError: the host's modules do not have them.
    """
    check(ARGUMENTS)
    patch(VERIFICATION, _verifying)
    patch(ARGUMENTS, _adding_arguments)


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
    if not getattr(args, "adt", False):
        reject_unknown_keys(vars(args))
        return
    from adt_plugin.host.checks import check_host_options
    from adt_plugin.host.session import Session

    config = ADTConfig.from_namespace(args)
    family = check_host_options(args, config)
    Session(config, args, family).install()


def stop(error: Exception) -> NoReturn:
    """End the run with the error's sentence alone, without a traceback."""
    raise SystemExit(f"adt_plugin: {error}") from error
