"""Runs of the host in processes forked from one that has imported torch and the Hugging Face libraries: the same unmodified
script on the same command line, five of its eight seconds earlier.

`run_warm` takes the place of `run_to_end`. What a process reads while it imports is the same for all that are forked from one;
there is one for runs with the plugin and one for those that `SWITCH` turns it off in. A command with another environment of its
own, or that is no script for this interpreter, is started as ever.
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
SWITCH = "ADT_PLUGIN_DISABLE"
"""Read as Python starts."""
STARTING = 120.0
"""Seconds that the imports may take on a busy machine."""


def run_warm(command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int, str, str]:
    """(returncode, stdout, stderr) of `command`, as `run_to_end` gives them, which runs what cannot be forked.

    Raises `subprocess.TimeoutExpired` after ending all processes of the run.
    """
    usual, read = (read_by_imports(variables) for variables in (host_environment(None, cwd), env))
    is_script = command[0] == sys.executable and not command[1].startswith("-")
    if not hasattr(os, "fork") or not is_script or read | usual != read or read.keys() - usual.keys() - {SWITCH}:
        return run_to_end(command, cwd, env, timeout)
    return Server.running(read).run(command[1:], cwd, env, timeout)


def read_by_imports(env: dict[str, str]) -> dict[str, str]:
    """What a process with this environment may read during an import."""
    return {name: value for name, value in env.items() if name not in READ_LATER}


class Server:
    """The process that others are forked from, one at a time; see `forked.py` for what is said to it."""

    by_switch: ClassVar[dict[str | None, Server]] = {}

    def __init__(self, read: dict[str, str]) -> None:
        self.read = read
        self.folder = tempfile.TemporaryDirectory(prefix="warm")
        place, environment = Path(self.folder.name), dict(read)
        for name, link in PLACES.items():
            (place / f"first-{link}").mkdir()
            (place / link).symlink_to(f"first-{link}")
            environment[name] = str(place / link)
        # Without buffers: `select` does not see a line that already lies in one.
        self.process = subprocess.Popen(
            [sys.executable, SERVER, place], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            start_new_session=True,
        )  # fmt: skip
        atexit.register(self.close)
        assert self.answer(STARTING) == "ready"

    @classmethod
    def running(cls, read: dict[str, str]) -> Server:
        """The one whose imports have read this, begun anew where it has ended, or where the environment has changed since:
        some packages write into it.
        """
        switch = read.get(SWITCH)
        found = cls.by_switch.get(switch)
        if found is not None and (found.process.poll() is not None or found.read != read):
            cls.by_switch.pop(switch).close()
        return cls.by_switch.get(switch) or cls.by_switch.setdefault(switch, cls(read))

    def run(self, command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int, str, str]:
        """As `run_warm`."""
        *printed, bytecode = [Path(self.folder.name) / name for name in ("stdout", "stderr", "bytecode")]
        assert self.process.stdin is not None
        request = {"command": command, "cwd": str(cwd), "env": env}
        request |= {"printed": list(map(str, printed)), "bytecode": str(bytecode)}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
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
        return str(line.decode().strip())

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        end_group(self.process)
        self.folder.cleanup()
