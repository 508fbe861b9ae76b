"""The command line: what it offers, how it answers a mistake, and what it leaves unloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from adt_plugin import __main__ as command_line
from adt_plugin import __version__

ADT = "from adt_plugin.__main__ import main; main()"
"""What the console script `adt` does."""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder."""
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_help_lists_every_command(arguments: list[str], tmp_path: Path) -> None:
    out = run("-m", "adt_plugin", *arguments, cwd=tmp_path)
    assert out.returncode == 0 and out.stdout.startswith("usage: python -m adt_plugin [-h] [--version] COMMAND")
    listed = dict(line.split(maxsplit=1) for line in out.stdout.splitlines() if line.startswith("    ") and line.split()[1:])
    assert {name: summary for name, (_, summary) in command_line.COMMANDS.items()}.items() <= listed.items()
    assert "accelerate launch -m adt_plugin SCRIPT.py" in out.stdout


def test_the_version(tmp_path: Path) -> None:
    assert run("-c", ADT, "--version", cwd=tmp_path).stdout == f"adt_plugin {__version__}\n"


def test_the_help_loads_no_command_and_no_torch(tmp_path: Path) -> None:
    code = "import atexit, sys; from adt_plugin.__main__ import main; loaded = lambda: print(*sys.modules)\n"
    out = run("-c", code + "atexit.register(loaded); main()", "--help", cwd=tmp_path)
    loaded = set(out.stdout.splitlines()[-1].split())
    assert "adt_plugin.__main__" in loaded
    assert not loaded & {"torch", "adt_plugin.core", "adt_plugin.demo", "adt_plugin.cost", "adt_plugin.host"}


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_every_command_is_there_and_its_help_calls_it_as_it_was_called(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, function = command_line.COMMANDS[command][0].split(":")
    assert callable(getattr(import_module(module), function))
    for prog in ("adt", "python -m adt_plugin"):
        with pytest.raises(SystemExit, match="0"):
            command_line.main([command, "--help"], prog=prog)
        assert capsys.readouterr().out.startswith(f"usage: {prog} {command} [")


def test_a_command_gets_all_that_follows_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    got = []
    monkeypatch.setitem(command_line.COMMANDS, "probe", (f"{__name__}:probe", ""))
    monkeypatch.setattr(
        sys.modules[__name__], "probe", lambda arguments, prog: got.append((list(arguments), prog)), raising=False
    )
    command_line.main(["probe", "--version", "x", "--", "--help"])
    assert got == [(["--version", "x", "--", "--help"], "adt probe")]


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("demmo", "demmo is neither a command nor a file: did you mean demo?"),
        ("costs", "costs is neither a command nor a file: did you mean cost?"),
        ("no_such.py", "no_such.py is neither a command nor a file; `adt --help` lists the commands."),
        ("bench", "the benchmark is not part of the package any more, it is in tests/benchmarks of the source repository."),
    ],
)
def test_a_word_that_is_no_command_is_answered_in_one_sentence(word: str, answer: str) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main([word])
    assert ended.value.code == f"adt_plugin: {answer}"


@pytest.mark.parametrize("option", ["--no_such", "--"])
def test_an_option_that_is_not_there_ends_with_2(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line.main([option, "demo"])
    assert "adt: error: " in capsys.readouterr().err


@pytest.mark.parametrize("launch", [["-m", "adt_plugin"], ["-c", ADT]], ids=["module", "console script"])
def test_a_script_runs_as_if_python_had_been_given_it(launch: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "beside.py").touch()
    lines = "import sys, beside\nfrom adt_plugin.host.activation import HostFinder\nprint(__name__, __file__, sys.argv)\n"
    (folder / "train.py").write_text(lines + "print(sys.path[0], any(isinstance(f, HostFinder) for f in sys.meta_path))\n")
    out = run(*launch, "scripts/train.py", "--version", "demo", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    expected = f"__main__ scripts/train.py ['scripts/train.py', '--version', 'demo']\n{folder.resolve()} True\n"
    assert out.stdout == expected
