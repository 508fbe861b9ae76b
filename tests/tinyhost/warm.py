"""Runs of the host in processes forked from one that has imported torch and the Hugging Face libraries: the same unmodified
script on the same command line, five of its eight seconds earlier.

`run_warm` takes the place of `run_to_end`. What a process reads while it imports is the same for all that are forked from one;
a command with an environment of its own, or that is no script for this interpreter, is started as ever.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from tinyhost.forked import PLACES
from tinyhost.run import end_all, end_group, host_environment, run_to_end

SERVER = Path(__file__).with_name("forked.py")
READ_LATER = {*PLACES, "TINYHOST_FAMILY", "TINYHOST_DEPTH", "ACCELERATE_USE_CPU", "PYTEST_CURRENT_TEST"}
"""Variables that a forked process is given in time: nothing that is imported beforehand has read them."""
STARTING = 120.0
"""Seconds that the imports may take on a busy machine."""


def run_warm(command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int, str, str]:
    """(returncode, stdout, stderr) of `command`, as `run_to_end` gives them, which runs what cannot be forked.

    Raises `subprocess.TimeoutExpired` after ending all processes of the run.
    """
    server = Server.running() if hasattr(os, "fork") else None
    if server is None or command[0] != sys.executable or command[1].startswith("-") or not server.fits(env):
        return run_to_end(command, cwd, env, timeout)
    return server.run(command[1:], cwd, env, timeout)


class Server:
    """The process that others are forked from, one at a time; see `forked.py` for what is said to it."""

    one: ClassVar[Server | None] = None

    def __init__(self) -> None:
        self.inherited = inherited()
        self.folder = tempfile.TemporaryDirectory(prefix="warm")
        place = Path(self.folder.name)
        self.environment = host_environment(None, place)
        for name, variable in PLACES.items():
            (place / f"first-{variable}").mkdir()
            (place / variable).symlink_to(f"first-{variable}")
            self.environment[name] = str(place / variable)
        self.process = subprocess.Popen(
            [sys.executable, SERVER, place], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        atexit.register(self.close)
        assert self.answer(STARTING) == "ready"

    @classmethod
    def running(cls) -> Server:
        """The one of this process, begun anew where it has ended, or where this process's own environment has changed since:
        some packages write into it.
        """
        if cls.one is not None and (cls.one.process.poll() is not None or cls.one.inherited != inherited()):
            cls.one.close()
            cls.one = None
        cls.one = cls.one or cls()
        return cls.one

    def fits(self, env: dict[str, str]) -> bool:
        """True if whatever is read during an import is what this process has read."""
        names = (self.environment.keys() | env.keys()) - READ_LATER
        return all(self.environment.get(name) == env.get(name) for name in names)

    def run(self, command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int, str, str]:
        """As `run_warm`."""
        printed = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        assert self.process.stdin is not None
        request = {"command": command, "cwd": str(cwd), "env": env, "printed": list(map(str, printed))}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        pid = int(self.answer(STARTING))
        try:
            status = int(self.answer(timeout))
        except TimeoutError as error:
            end_all(pid)
            self.answer(STARTING)
            raise subprocess.TimeoutExpired(command, timeout, *(path.read_bytes() for path in printed)) from error
        stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in printed)
        return status, stdout, stderr

    def answer(self, timeout: float) -> str:
        """The next line of the process. Raises TimeoutError if none comes, RuntimeError if the process has ended."""
        stdout: Any = self.process.stdout
        ready, _, _ = select.select([stdout], [], [], timeout)
        if not ready:
            raise TimeoutError
        line = stdout.readline()
        if not line:
            raise RuntimeError("the process that runs of the host are forked from has ended")
        return str(line).strip()

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        end_group(self.process)
        self.folder.cleanup()


def inherited() -> dict[str, str]:
    """What a process gets from this one's environment and may read during an import."""
    return {name: value for name, value in os.environ.items() if name not in READ_LATER}
