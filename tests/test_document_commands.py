"""No command of the documents fails to parse: each goes through the parser that it meets, sd-scripts' own among them."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import toml
from accelerate.commands.launch import launch_command_parser

from adt_plugin import __main__ as command_line
from adt_plugin.cost.cli import flattened
from adt_plugin.host.families import FAMILIES
from documents import (
    DOCUMENTS,
    LAUNCH,
    REPOSITORY,
    Command,
    all_commands,
    bare_commas,
    commands_of,
    read_and_never_made,
    read_by,
)
from tinyhost.run import host_environment

COMMANDS = all_commands()
LAUNCHED = [command for command in COMMANDS if command.words[:2] == LAUNCH]
SCRIPTS = {script for family in FAMILIES for script in family.scripts}
PRESETS = [path for path in sorted((REPOSITORY / "sample_configs").glob("*.toml")) if path.stem != "adt_only"]

ELSEWHERE = {"--version", "--no-cache-dir", "--multi_gpu", "--num_machines"}
"""Flags in the documents that belong to a tool whose parser is not asked."""


class ParsedError(Exception):
    """Ends a command after its arguments were parsed."""

    def __init__(self, options: set[str]) -> None:
        super().__init__()
        self.options = options


def options_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Let a command of the plugin parse its arguments and do nothing else; return all options that it has.

    Raises SystemExit where they do not parse.
    """
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise ParsedError(set(parser._option_string_actions))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(ParsedError) as parsed:
            command_line.main(arguments)
    return parsed.value.options


def launched(command: Command) -> tuple[str, list[str]]:
    """Return script and arguments of an `accelerate launch`, as accelerate itself parses it."""
    given = launch_command_parser().parse_args(list(command.words[2:]))
    return given.training_script, given.training_script_args


def python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check `python -m MODULE ...`."""
    dash, module, *arguments = words
    assert dash == "-m" and find_spec(module) is not None
    if module == "adt_plugin":
        options_of(arguments, monkeypatch)


def pip(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that extras exist, and that no index is asked for this project, which is on none."""
    extras = toml.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert words[0] in ("install", "uninstall")
    assert words[0] == "uninstall" or not any(re.match(r"adt[-_]plugin(?!.*@)", word) for word in words)
    assert {name for group in re.findall(r"\[([\w,]+)\]", " ".join(words)) for name in group.split(",")} <= set(extras)


def git(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a commit is one that was tested, by the seven characters that its column's heading has at least."""
    assert "clone" in words or words[-1][:7] in (REPOSITORY / "docs" / "compatibility.md").read_text(encoding="utf-8")


def accelerate(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that it launches a trainer that is served; `test_a_launched_command_parses` goes on from there."""
    assert launched(Command("", ("accelerate", *words)))[0] in SCRIPTS


CHECKS = {
    "adt": options_of,
    "python": python,
    "venv/bin/python": python,
    "pip": pip,
    "git": git,
    "accelerate": accelerate,
}
"""What a command begins with -> its check; a folder that is changed to needs none."""


def test_the_commands_are_found() -> None:
    shown = {command.words[0] for command in COMMANDS}
    assert {"adt", "accelerate", "python", "pip", "git"} <= shown and len(COMMANDS) > 30
    assert {command.words[1] for command in COMMANDS if command.words[0] == "adt"} == set(command_line.COMMANDS) - {"demo"}
    assert {command.document for command in LAUNCHED} == {"README.md", "docs/guides/gui.md", "docs/guides/models.md"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] not in ("cd", "%cd")], ids=str)
def test_a_command_parses(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    CHECKS[command.words[0]](list(command.words[1:]), monkeypatch)


def test_a_command_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options_of(["cost", "--no_such"], monkeypatch)
    assert "unrecognized arguments: --no_such" in capsys.readouterr().err


def name_of(document: Path) -> str:
    return document.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("document", [*DOCUMENTS, REPOSITORY / "tests" / "gpu" / "README.md"], ids=name_of)
def test_a_value_with_a_comma_is_quoted(document: Path) -> None:
    """Quoted it is one value in every shell; PowerShell splits it where it is not."""
    assert bare_commas(document.read_text(encoding="utf-8")) == []


def test_a_comma_that_powershell_would_split_is_noticed() -> None:
    page = """Give `--cfg 5,7` or `--cfg "5,7"`, `a, b` and `resolution = 1,2`:

    adt compare --steps 1,2 \\
      --seeds 8  # x,y

    ... --resolution 512,512 \\
      --adt

    pip install -e ".[test,host]"

```python
f(--a,b)
```
"""
    first, second, span = bare_commas(page)
    assert first.startswith("adt compare --steps 1,2") and second.startswith("... --resolution") and span == "--cfg 5,7"


# What the commands read and leave behind

README = commands_of(REPOSITORY / "README.md")
OWN = {"sd15.safetensors", "train", "my_run.toml"}
"""What the README takes for granted: a base, training images, a file of a run's options."""


def test_every_file_that_a_command_of_the_readme_reads_was_made_by_one_before_it() -> None:
    assert read_and_never_made(README, OWN) == []
    assert set().union(*map(read_by, README)) >= OWN | {"output/my_lora.safetensors", "output/my_lora_adt.safetensors"}


def test_a_command_that_is_left_out_of_the_readme_is_noticed() -> None:
    """The run that finishes a LoRA: what it would have made is missing in the comparison."""
    without = [command for command in README if "--dim_from_weights" not in command.words]
    (missing,) = read_and_never_made(without, OWN)
    assert missing.startswith("output/my_lora_adt.safetensors in README.md: adt compare ")


# sd-scripts' own parsers

ASKED = """
import contextlib, importlib, io, json, sys
import adt_plugin
adt_plugin.register()
task = json.loads(sys.argv[1])
parsers = {script: importlib.import_module(script[:-3]).setup_parser() for script in task["scripts"]}
refused = []
for script, arguments in task["commands"]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsers[script].parse_args(arguments)
    except SystemExit:
        refused.append([script, said.getvalue().splitlines()[-1]])
options = {script: sorted(parser._option_string_actions) for script, parser in parsers.items()}
values = {
    script: {a.dest: list(a.choices) if a.choices else None for a in parser._actions} for script, parser in parsers.items()
}
print(json.dumps({"refused": refused, "options": options, "values": values}))
"""


@pytest.fixture(scope="module")
def host(host_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the host's parsers say: the commands that they refuse, all their options, their keys with the words of choices."""
    commands = [*map(launched, LAUNCHED), ("train_network.py", ["--adt", "--adt_stepz", "5"])]
    scripts = sorted(script for script in SCRIPTS if (host_dir / script).is_file())
    command = [sys.executable, "-c", ASKED, json.dumps({"scripts": scripts, "commands": commands})]
    variables = host_environment("sd", tmp_path_factory.mktemp("parsers"))
    done = subprocess.run(command, cwd=host_dir, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_launched_command_parses(host: dict[str, Any]) -> None:
    ((script, said),) = host["refused"]  # the one that is wrong on purpose
    assert script == "train_network.py" and "--adt_stepz" in said and "did you mean --adt_steps" in said


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_a_preset_has_no_key_that_its_trainer_does_not_know(preset: Path, host: dict[str, Any]) -> None:
    """sd-scripts takes a misspelt key in silence."""
    text = preset.read_text(encoding="utf-8")
    (script,) = set(re.findall(rf"accelerate launch (\w+\.py) --config_file {preset.name}", text))
    if script not in host["values"]:
        pytest.skip(f"this sd-scripts has no {script}")
    known = host["values"][script]
    for key, value in flattened(toml.loads(text)).items():
        assert key in known, f"{key} of {preset.name}"
        assert known[key] is None or value in known[key], f"{key} of {preset.name} cannot be {value}"


def test_every_flag_in_the_guides_exists(host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In prose as well, of sd-scripts, of the plugin's commands or of accelerate."""
    known = ELSEWHERE | {option for options in host["options"].values() for option in options}
    known |= set(launch_command_parser()._option_string_actions)
    for arguments in (["demo"], ["cost"], ["gpu-check"], ["doctor"], ["compare", "--base", "a", "--reference", "b"]):
        known |= options_of(arguments, monkeypatch)
    pages = (REPOSITORY / "docs" / name for name in ("options.md", "cost.md", "compare.md"))
    for document in (REPOSITORY / "README.md", *pages, *(REPOSITORY / "docs" / "guides").glob("*.md")):
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+(?!\w*\.\.\.)", document.read_text(encoding="utf-8")))
        assert {name for name in named if not name.endswith("_")} <= known, document.name
