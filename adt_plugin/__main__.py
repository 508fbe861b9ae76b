"""The command line: `adt`, or `python -m adt_plugin`.

It runs the plugin's commands, and launches training scripts in environments that ignore `.pth` files. A new command is
one line of `COMMANDS` and a module of its own.
"""

from __future__ import annotations

import argparse
import difflib
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from adt_plugin import __version__, register

COMMANDS = {
    "demo": ("adt_plugin.demo.cli:demo_main", "train the built-in miniature: no host, no weights, no network"),
    "cost": ("adt_plugin.cost.cli:cost_main", "tell what a run costs in time and memory, counted or measured"),
    "compare": ("adt_plugin.compare.cli:compare_main", "tell whether it helped: images and figures of a base and fine-tunes"),
    "gpu-check": ("adt_plugin.cost.check_cli:check_main", "tell whether this card is ready, and what a run takes on it"),
    "doctor": ("adt_plugin.host.checkup:main", "tell whether this computer is ready to train with --adt"),
}
"""Name of a command -> `module:function`, and its line in the help.

The function takes the arguments after the name, and as `prog` what its help calls the command. Its module is imported when
the command is run and not before.
"""

MOVED = {"bench": "the benchmark is not part of the package any more, it is in tests/benchmarks of the source repository."}
"""Name of a former command -> where to find it now."""

SCRIPTS = """\
training scripts:
  accelerate launch -m adt_plugin SCRIPT.py ...
                     run a training script of sd-scripts with the plugin hooked in
"""


def main(arguments: Sequence[str] | None = None, prog: str = "adt") -> None:
    """Run a command of the plugin or a training script.

    Args:
        arguments: the command line after the program's name; None for this process's own.
        prog: how the program was called, for the help.

    Raises:
        SystemExit: 1 for a first word that is neither a command nor a file; what else the command ends with.
    """
    first, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if first.startswith("-"):
        parser = command_parser(prog)
        parser.parse_args([first])
        parser.error("expected a command or a training script")
    elif first in COMMANDS:
        run_command(first, rest, prog)
    elif first in MOVED:
        raise SystemExit(f"adt_plugin: {MOVED[first]}")
    elif Path(first).is_file():
        run_script(first, rest)
    else:
        raise SystemExit(f"adt_plugin: {first} is neither a command nor a file{advice(first, prog)}")


def command_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of what may stand before a command; the commands parse what follows them."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Adversarial Diffusion Tuning as a plugin for kohya-ss/sd-scripts.",
        epilog=SCRIPTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", "-V", action="version", version=f"adt_plugin {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def run_command(name: str, arguments: Sequence[str], prog: str) -> None:
    """Import a command's module and run the command with the arguments that follow its name."""
    module, function = COMMANDS[name][0].split(":")
    getattr(import_module(module), function)(arguments, prog=f"{prog} {name}")


def advice(word: str, prog: str) -> str:
    """Return the end of a sentence: the command whose name the word resembles, or where all commands are listed."""
    near = difflib.get_close_matches(word, [*COMMANDS, *MOVED], n=1)
    return f": did you mean {near[0]}?" if near else f"; `{prog} --help` lists the commands."


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a training script as `python SCRIPT.py` would, with the plugin hooked in."""
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    register()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(prog="python -m adt_plugin")
