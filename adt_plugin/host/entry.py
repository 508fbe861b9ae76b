"""The two seams that are always there: the host's arguments, and its first look at them.

Without `--adt` nothing else of the host is touched.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adt_plugin import options
from adt_plugin.core.errors import ConfigError
from adt_plugin.host.seams import Function, Seam, SeamError, patch

logger = logging.getLogger(__name__)

ARGUMENTS = Seam(
    "add_training_arguments", ("library.args", "library.train_util"), ("parser",), "the --adt options in the host's parser"
)
VERIFICATION = Seam(
    "verify_training_args",
    ("library.args", "library.train_util"),
    ("args",),
    "the check of the options before models are loaded",
)


class Entry:
    """Where the plugin enters a process of the host; there is one in a process.

    Attributes:
        missing: why the options could not be added to the host's parser, if they could not.
        undos: gives the host back what the latest run in this process has patched.
    """

    def __init__(self) -> None:
        self.missing: list[SeamError] = []
        self.undos = ExitStack()

    def install(self) -> None:
        """Patch both seams. Idempotent.

        The verification is patched first and by itself, so that a run that asks for ADT in a TOML file is stopped where the
        options could not be added.

        Raises:
            SeamError: the host's modules do not have one of them.
        """
        patch(VERIFICATION, self._verifying)
        self.missing.clear()
        try:
            patch(ARGUMENTS, _adding_arguments)
        except SeamError as error:
            self.missing.append(error)
            raise

    def _verifying(self, original: Function) -> Function:
        def verify_training_args(args: argparse.Namespace, *rest: Any, **kwargs: Any) -> Any:
            result = original(args, *rest, **kwargs)
            self.start(args)
            return result

        return verify_training_args

    def start(self, args: argparse.Namespace) -> None:
        """Begin a session if the run asks for one; called before the host loads anything.

        Raises:
            ConfigError: an option or a combination that cannot work.
            SeamError: the host lacks a seam that the run needs.
        """
        self.undos.close()
        wanted = getattr(args, "adt", False)
        if not isinstance(wanted, bool):
            raise ConfigError(f"adt must be true or false, got {wanted!r}.")
        options.reject_unknown_keys(vars(args))
        if not wanted:
            warn_of_unused(args)
            return
        for error in self.missing:
            raise error
        from adt_plugin.host.checks import check_host_options, with_memory
        from adt_plugin.host.session import Session

        config = with_memory(args, options.from_namespace(args))
        session = Session(config, args, check_host_options(args, config))
        self.undos.callback(session.uninstall)
        session.install()


def warn_of_unused(args: argparse.Namespace) -> None:
    """Name the `adt_*` options of a run that leaves `--adt` out."""
    unused = options.given_names(args, sys.argv, _settings(getattr(args, "config_file", None)))
    if unused:
        logger.warning(
            "%s without --adt: this run trains without ADT. Add --adt (adt = true), or remove them.", ", ".join(unused)
        )


def _settings(config_file: str | None) -> list[str]:
    """Return the keys of the host's file of options, whose sections have no meaning; none where it cannot be read."""
    if not config_file:
        return []
    import toml

    path = Path(str(config_file).removesuffix(".toml") + ".toml")  # the host takes the suffix off
    try:
        sections = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [key for name, value in sections.items() for key in (value if isinstance(value, dict) else [name])]


def _adding_arguments(original: Function) -> Function:
    def add_training_arguments(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        result = original(parser, *args, **kwargs)
        options.add_adt_arguments(parser)
        return result

    return add_training_arguments
