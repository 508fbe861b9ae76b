"""Run a real training script of the host in a process of its own, on a tiny model."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import psutil

from adt_plugin.host.doctor import LINES

if TYPE_CHECKING:
    import torch

    from tinyhost.models import HostModel

Launcher = Literal["python", "accelerate", "module", "accelerate-module"]

Runner = Callable[[list[str], Path, dict[str, str], float], tuple[int, str, str]]
"""(returncode, stdout, stderr) of a command in a folder with an environment, within a time in seconds."""

REPOSITORY = Path(__file__).resolve().parents[2]
SITE = Path(__file__).resolve().parent / "site"
SCRIPT = "train_network.py"
NO_HOST = "no sd-scripts work tree found; set SD_SCRIPTS_DIR"
OUTPUT_NAME = "tiny"
LOG_TAIL = 60
# Buckets of 64x64, 128x64 and 64x128 pixels; the host refuses steps that are no multiple of 64.
BUCKETS = ("--resolution", "128,64", "--enable_bucket", "--min_bucket_reso", "64", "--max_bucket_reso", "128")


# Finding the host


def find_host() -> Path | None:
    """The host's work tree: the first of `find_hosts`."""
    hosts = find_hosts()
    return hosts[0] if hosts else None


def find_hosts() -> list[Path]:
    """The work trees that every host test runs on: all of `SD_SCRIPTS_DIR`, else the newest that is found."""
    return find_every_host() if os.environ.get("SD_SCRIPTS_DIR") else find_every_host()[:1]


def find_every_host() -> list[Path]:
    """All work trees, for the tests that run on each: those that `SD_SCRIPTS_DIR` names, separated as in `PATH`, in its order.

    Without it, whatever is called `sd-scripts` or `sd-scripts-<something>` beside this repository or in the home folder: one
    of every line of development, the newest first.
    Raises ValueError if the variable names a folder that is no work tree of the host.
    """
    named = [Path(name).expanduser().resolve() for name in os.environ.get("SD_SCRIPTS_DIR", "").split(os.pathsep) if name]
    for folder in named:
        if not is_host(folder):
            raise ValueError(f"SD_SCRIPTS_DIR: {folder} has no {SCRIPT}")
    if named:
        return named
    places = (REPOSITORY.parent, Path.home())
    usual = [folder for place in places for folder in (place / "sd-scripts", *sorted(place.glob("sd-scripts-*")))]
    by_line: dict[int, Path] = {}
    for folder in filter(is_host, usual):
        by_line.setdefault(line_of(folder), folder)
    return [by_line[line] for line in sorted(by_line)]


def line_of(folder: Path) -> int:
    """The place of a tree's line of development among `LINES`, the newest first."""
    return next((place for place, (file, _) in enumerate(LINES) if (folder / file).is_file()), len(LINES))


def is_host(folder: Path) -> bool:
    """True if `folder` is a work tree of sd-scripts."""
    return (folder / SCRIPT).is_file() and (folder / "library").is_dir()


# Running it


@dataclass(frozen=True)
class CompletedRun:
    """A finished run of the host, whatever its exit status."""

    returncode: int
    stdout: str
    stderr: str
    output_dir: Path

    @property
    def log(self) -> str:
        """Everything that was printed: the host's loggers write to one stream, the progress bar to the other."""
        return self.stdout + self.stderr

    def check(self) -> CompletedRun:
        """This run, if it ended with status 0; else AssertionError with the end of its log."""
        if self.returncode != 0:
            tail = "\n".join(line.rstrip() for line in self.log.splitlines()[-LOG_TAIL:])
            raise AssertionError(f"the host ended with status {self.returncode}:\n{tail}")
        return self

    def saved(self, name: str = f"{OUTPUT_NAME}.safetensors") -> dict[str, torch.Tensor]:
        """The tensors of a saved file, by default of the final one."""
        from safetensors.torch import load_file

        return load_file(self.output_dir / name)

    def metadata(self, name: str = f"{OUTPUT_NAME}.safetensors") -> dict[str, str]:
        """The metadata in the head of a saved file, by default of the final one."""
        from safetensors import safe_open

        with safe_open(self.output_dir / name, framework="pt") as file:
            return file.metadata() or {}


class TinyRun(Protocol):
    """`run_host` with the fixtures filled in; keywords of `run_host` take their place."""

    def __call__(self, *args: str | Path, script: str = SCRIPT, **keywords: object) -> CompletedRun: ...


def run_host(
    script: str,
    *args: str | Path,
    host_dir: Path,
    model: HostModel,
    images: Path,
    output_dir: Path,
    launcher: Launcher = "python",
    env: Mapping[str, str] | None = None,
    cpu: bool = True,
    processes: int = 1,
    timeout: float = 300,
    runner: Runner | None = None,
) -> CompletedRun:
    """Run `script` of the host at `host_dir`; `args` come after the kit's defaults, and argparse lets the last one win.

    `env` is laid over the environment. With `cpu=False` the host takes a GPU if there is one. Several `processes` need one of
    accelerate's launchers. `runner` takes the place of `run_to_end`.
    Raises `subprocess.TimeoutExpired` (with what was printed so far) after ending all processes of the run.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    arguments = [*host_arguments(script, model, images, output_dir), *map(str, args)]
    command = [*launch_command(launcher, cpu, processes), script, *arguments]
    variables = host_environment(model.family, output_dir, cpu, model.tokenizers) | dict(env or {})
    returncode, stdout, stderr = (runner or run_to_end)(command, host_dir, variables, timeout)
    return CompletedRun(returncode, stdout, stderr, output_dir)


def launch_command(launcher: Launcher, cpu: bool = True, processes: int = 1) -> list[str]:
    """What stands before the script's name."""
    if processes > 1 and not launcher.startswith("accelerate"):
        raise ValueError(f"{launcher} starts one process")
    if launcher == "python":
        return [sys.executable]
    if launcher == "module":
        return [sys.executable, "-m", "adt_plugin"]
    flags = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if processes > 1:  # torchrun beneath; `ACCELERATE_USE_CPU` reaches the processes by the environment
        flags += ["--multi_gpu", "--main_process_port", str(free_port())]
        cpu = False
    plugin = ["-m", "adt_plugin"] if launcher == "accelerate-module" else []
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, *(["--cpu"] if cpu else []), *plugin]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def host_arguments(script: str, model: HostModel, images: Path, output_dir: Path) -> list[str]:
    """Two steps at 64x64 with a fixed seed; a LoRA of rank 4 for the scripts that train one."""
    arguments = {
        "--pretrained_model_name_or_path": model.checkpoint,
        "--tokenizer_cache_dir": model.tokenizers,
        "--train_data_dir": images,
        "--caption_extension": ".txt",
        "--resolution": "64,64",
        "--output_dir": output_dir,
        "--output_name": OUTPUT_NAME,
        "--save_model_as": "safetensors",
        "--max_data_loader_n_workers": 0,
        "--max_train_steps": 2,
        "--learning_rate": "1e-3",
        "--seed": 1,
    }
    if script.endswith("train_network.py"):
        arguments |= {"--network_module": model.network_module, "--network_dim": 4}
    if script.endswith("fine_tune.py"):
        arguments["--in_json"] = images / "meta.json"
    flat = [str(part) for item in arguments.items() for part in item]
    if script.endswith("fine_tune.py"):
        flat.append("--cache_latents")  # without it the script reads a latents strategy that it has not set
    return [*flat, *model.arguments]


def host_environment(family: str | None, output_dir: Path, cpu: bool = True, hub_cache: Path | None = None) -> dict[str, str]:
    """The environment of the host's process: offline, one thread, its own caches, and this kit's start-up module."""
    paths = [str(SITE), os.environ.get("PYTHONPATH", "")]
    variables = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(output_dir / "hf_home"),  # nor the user's accelerate configuration
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "200",  # the host's logger wraps its lines at this width
    }
    if hub_cache is not None:
        variables["HF_HUB_CACHE"] = str(hub_cache)
    if cpu:
        variables["ACCELERATE_USE_CPU"] = "true"
    inherited = {name: value for name, value in os.environ.items() if name != "TINYHOST_FAMILY"}
    return inherited | variables | ({"TINYHOST_FAMILY": family} if family else {})


def run_to_end(command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> tuple[int, str, str]:
    """(returncode, stdout, stderr) of `command`; on a timeout its whole process group ends, not only the launcher."""
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        end_group(process)
        raise
    return process.returncode, stdout, stderr


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process with all that it has started, and wait for it."""
    end_all(process.pid)
    process.communicate()


def end_all(pid: int) -> None:
    """End a process, the group that it leads, and everything else it has started: torchrun's processes lead their own."""
    ended = []
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        ended = [leader, *leader.children(recursive=True)]
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    for process in ended:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
