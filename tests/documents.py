"""The commands that the documents show, as a shell would split them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

FIRST_WORDS = ("adt", "accelerate", "python", "venv/bin/python", "pip", "uv", "git", "hf", "huggingface-cli", "cd", "%cd")
"""What a line of a document's code block begins with if it is a command."""

PLACEHOLDER = re.compile(r"\.\.\..*?\.\.\.")
"""Words that stand for the reader's own options, between dots."""

AGAIN = "... "
"""What a line begins with that says the training command before it once more, with other options behind its own."""

LAUNCH = ("accelerate", "launch")


@dataclass(frozen=True)
class Command:
    """One command of a document.

    Attributes:
        document: its path in the repository.
        words: as a shell splits it, without its comment.
    """

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"


def commands_of(document: Path) -> list[Command]:
    """Return the commands in the code blocks of a document, in order; `a && b` is two of them.

    A line that begins with `...` is the training command before it with these words behind; of an option the last one counts.
    """
    name, found = document.relative_to(REPOSITORY).as_posix(), []
    for line in code_lines(document.read_text(encoding="utf-8")):
        if line.startswith(AGAIN):
            launch = [command for command in found if command.words[:2] == LAUNCH][-1]
            found.append(Command(name, (*launch.words, *shlex.split(line.removeprefix(AGAIN), comments=True))))
            continue
        line = PLACEHOLDER.sub("", line.removeprefix("!"))
        if line.split(maxsplit=1)[0] in FIRST_WORDS:
            found += [Command(name, tuple(part)) for part in split(shlex.split(line, comments=True))]
    return found


def bare_commas(text: str) -> list[str]:
    """Return the commands and options of a document, in code blocks or in a line of text, that have a comma outside of quotes.

    PowerShell makes an array of it, and gives its elements to a program as separate arguments.
    """
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    options = re.compile(r"(?<![\w-])--[a-z]")
    shown = [line for line in [*code_lines(text), *spans] if options.search(line) or line.split(maxsplit=1)[0] in FIRST_WORDS]
    return [line for line in shown if re.search(r"[^\s,],[^\s,]", re.sub(r'"[^"]*"|\s#.*', "", line))]


def code_lines(text: str) -> list[str]:
    """Return the lines of all blocks that are indented or fenced as a shell's, those that end in a backslash joined."""
    lines: list[str] = []
    fence = None  # the language of the fenced block that is open; empty for none
    for line in text.splitlines():
        if line.startswith("```"):
            fence = None if fence is not None else line[3:].strip()
        elif fence in ("", "bash", "sh") or (fence is None and line.startswith("    ")):
            lines.append(line.strip())
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def split(words: list[str]) -> list[list[str]]:
    """Split a list at `&&`."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def all_commands() -> list[Command]:
    """Return the commands of all documents."""
    return [command for document in DOCUMENTS for command in commands_of(document)]


def commands_like(document: str, *beginning: str, count: int) -> list[Command]:
    """Return the commands of a document that begin with these words, in order.

    Raises AssertionError where there are not as many as are expected.
    """
    found = [command for command in commands_of(REPOSITORY / document) if command.words[: len(beginning)] == beginning]
    assert len(found) == count, f"{document} has {len(found)} commands that begin with {shlex.join(beginning)}"
    return found


# The files between commands

FILE = re.compile(r"[\w./~-]*\w\.(?:safetensors|toml|txt|json)")
FOLDERS = ("--train_data_dir", "--reference", "-C")
"""Options that name a folder to read from."""


def values_of(words: tuple[str, ...]) -> dict[str, str]:
    """Return the value of every option that has one; of several the last, as argparse does."""
    return {word: after for word, after in pairwise(words) if word.startswith("-") and not after.startswith("-")}


def read_by(command: Command) -> set[str]:
    """Return the files that a command names, by whatever option and also as NAME=FILE, and the folders that it reads from."""
    named = [word.partition("=")[2] or word for word in command.words]
    values = values_of(command.words)
    return {word for word in named if FILE.fullmatch(word)} | {values[option] for option in FOLDERS if option in values}


def made_by(command: Command) -> set[str]:
    """Return the file or folder that a command leaves behind."""
    values = values_of(command.words)
    if command.words[:2] == LAUNCH:
        return {f"{values['--output_dir']}/{values['--output_name']}.safetensors"}
    if command.words[:2] == ("git", "clone"):
        return {command.words[-1]}
    return {values["--out"]} if "--out" in values else set()


def read_and_never_made(commands: Sequence[Command], own: set[str]) -> list[str]:
    """Return what commands read that none before them has made and that the reader does not have, each with its command."""
    there, missing = set(own), []
    for command in commands:
        missing += [f"{name} in {command}" for name in sorted(read_by(command) - there)]
        there |= made_by(command)
    return missing
