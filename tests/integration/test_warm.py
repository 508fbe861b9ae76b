"""A forked process is as one that Python has just started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tinyhost.run import Runner, host_environment, run_to_end
from tinyhost.warm import SWITCH, Server, read_by_imports, run_warm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

TELLING = """
import atexit, json, os, sys
from huggingface_hub import constants
atexit.register(print, "the end")
print(json.dumps({
    "argv": sys.argv, "name": __name__, "folder": os.getcwd(), "first": sys.path[0], "home": os.environ["HF_HOME"],
    "hub": os.path.realpath(constants.HF_HUB_CACHE), "family": os.environ.get("TINYHOST_FAMILY"), "input": sys.stdin.read(),
    "leads": os.getsid(0) == os.getpid(), "parent": os.getppid(), "plugin": "adt_plugin" in sys.modules,
    "hooks": [type(finder).__name__ for finder in sys.meta_path if type(finder).__name__ in ("AdtPluginHook", "AfterImport")],
}))
print("to stderr", file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "telling.py"
    path.write_text(TELLING, encoding="utf-8")
    return path


def told(runner: Runner, script: Path, *arguments: str, **env: str) -> tuple[dict[str, Any], str]:
    """What the script said of its process, and its stderr."""
    place = script.parent
    variables = host_environment("sd", place, hub_cache=place / "cache") | env
    status, out, err = runner([sys.executable, str(script), *arguments], place, variables, 60)
    assert status == 0 and out.endswith("the end\n"), out + err
    return json.loads(out.splitlines()[0]), err


def server() -> Server:
    """The one that a run would be forked from now."""
    return Server.running(read_by_imports(host_environment(None, Path())))


def test_a_script_finds_what_it_finds_when_python_starts_it(script: Path) -> None:
    cold, warm = (told(runner, script, "--a", "é b") for runner in (run_to_end, run_warm))
    assert warm[0].pop("parent") == server().process.pid
    assert cold[0].pop("parent") == os.getpid()
    assert warm == cold
    assert len(warm[0]["hooks"]) == 2 and not warm[0]["plugin"]


def test_each_process_has_folders_of_its_own(script: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    first, second = (told(run_warm, script, HF_HUB_CACHE=str(place))[0]["hub"] for place in (tmp_path, other))
    assert (first, second) == (str(tmp_path), str(other))


def test_what_an_import_may_have_read_starts_a_process_of_its_own(script: Path) -> None:
    assert told(run_warm, script, PYTHONHASHSEED="1")[0]["parent"] == os.getpid()


def test_without_the_plugin_processes_have_a_parent_that_never_had_it(script: Path) -> None:
    cold, warm = (told(runner, script, **{SWITCH: "1"})[0] for runner in (run_to_end, run_warm))
    assert warm.pop("parent") not in (cold.pop("parent"), server().process.pid)
    assert warm == cold and warm["hooks"] == ["AfterImport"]
    assert told(run_warm, script)[0]["parent"] == server().process.pid


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('a sentence')", 1, "a sentence"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
    ],
)
def test_a_process_that_fails_says_so(tmp_path: Path, code: str, status: int, said: str) -> None:
    script = tmp_path / "failing.py"
    script.write_text(code, encoding="utf-8")
    for runner in (run_to_end, run_warm):
        found, _, err = runner([sys.executable, str(script)], tmp_path, host_environment(None, tmp_path), 60)
        assert found == status
        assert err.strip().endswith(said) or said in err.splitlines()[-1]


def test_a_timeout_ends_the_process_and_the_next_one_runs(script: Path, tmp_path: Path) -> None:
    sleeping, child = tmp_path / "sleeping.py", ["sleep", "60"]
    sleeping.write_text(f"import subprocess; print('so far', flush=True); subprocess.run({child})", encoding="utf-8")
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        run_warm([sys.executable, str(sleeping)], tmp_path, host_environment(None, tmp_path), 2)
    assert time.monotonic() - start < 30
    assert b"so far" in raised.value.output
    assert told(run_warm, script)[0]["leads"]


def test_a_server_that_was_ended_is_begun_anew(script: Path) -> None:
    before = server().process
    before.kill()
    before.wait()
    assert told(run_warm, script)[0]["parent"] == server().process.pid != before.pid


def test_an_environment_that_has_changed_begins_another_server(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = server()
    monkeypatch.setenv("WRITTEN_BY_A_PACKAGE", "1")
    assert told(run_warm, script)[0]["parent"] == server().process.pid != before.process.pid
    assert before.process.poll() is not None and not Path(before.folder.name).exists()


def test_an_answer_that_came_with_the_one_before_is_not_waited_for(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has ended before its id is read."""
    answer = Server.answer
    monkeypatch.setattr(Server, "answer", lambda self, timeout: (time.sleep(1), answer(self, timeout))[1])
    script.write_text("", encoding="utf-8")
    found = run_warm([sys.executable, str(script)], script.parent, host_environment(None, script.parent), 3)
    assert found == (0, "", "")
