"""The command `doctor`: whether this computer is ready to train with `--adt`, and if not, what to do.

It runs without torch, since a Python that lacks it is one of the things to find. The seams of the trainers are read by
`doctor.py`, which knows the families and so needs torch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adt_plugin import __version__
from adt_plugin.core.config import ADTConfig
from adt_plugin.core.hub import download_command
from adt_plugin.host.activation import HostFinder
from adt_plugin_hook import AdtPluginHook

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "toml")
"""What the plugin and sd-scripts need; the first two are imported, since a broken build imports only in part."""

MINIMUM = {
    "torch": "2.1",
    "diffusers": "0.25",
    "transformers": "4.40",
    "accelerate": "0.25",
    "safetensors": "0.4",
    "toml": "0.10",
}
"""The oldest versions that pyproject.toml allows."""

SCRIPT = "train_network.py"
ENVIRONMENTS = ("venv", ".venv")
"""Folders in which the GUI's and sd-scripts' instructions make their environment."""

HUB = "https://huggingface.co"
FREE_DISK = 3 * 10**9
"""Bytes below which a run is likely to end at a full disk."""

DESCRIPTION = (
    "Tell whether this computer is ready to train with --adt. Run it with the Python that trains, inside the folder of "
    "sd-scripts or of the kohya_ss GUI, or name that folder. The files of sd-scripts are read and not run."
)


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        state: `OK`, `NOTE` for what may be meant so, or `PROBLEM`.
        found: one line.
        remedy: what to do about a problem.
    """

    state: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.found}" + (f": {self.remedy}" if self.remedy else "")


def find_host(folder: Path | None) -> Path | None:
    """Return the work tree of sd-scripts that is the folder, or lies in it as the GUI keeps it; None where there is none.

    Args:
        folder: None looks at the current one and those above it.
    """
    folders = [folder] if folder else [Path.cwd(), *Path.cwd().parents]
    places = (place for each in folders for place in (each, each / "sd-scripts"))
    return next((place for place in places if (place / SCRIPT).is_file() and (place / "library").is_dir()), None)


def this_python(host: Path | None) -> Iterator[Check]:
    """Look at the Python that runs this, and at the environments in which the host's folder suggests that it trains."""
    kind = "conda environment" if os.environ.get("CONDA_PREFIX") == sys.prefix else "virtual environment"
    kind = kind if sys.prefix != sys.base_prefix or kind.startswith("conda") else "no environment of its own"
    yield Check(OK, f"Python {sys.version.split()[0]} in {sys.prefix} ({kind})")
    for folder in (environment for root in _roots(host) for environment in (root / name for name in ENVIRONMENTS)):
        if (folder / "pyvenv.cfg").is_file() and folder.resolve() != Path(sys.prefix).resolve():
            yield _other_environment(folder)


def _roots(host: Path | None) -> list[Path]:
    """Return the folders in which an environment for this host is usually made: its own, and the GUI's around it."""
    return [] if host is None else [host, host.parent] if (host.parent / "kohya_gui.py").is_file() else [host]


def _other_environment(folder: Path) -> Check:
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if any(folder.glob("[Ll]ib*/**/site-packages/adt_plugin.pth")):
        return Check(
            NOTE, f"{folder} is an environment too, and has the plugin", f"what it has is told by {python} -m adt_plugin doctor"
        )
    return Check(
        PROBLEM,
        f"{folder}, in which sd-scripts probably trains, is another environment and has no adt_plugin",
        f"install it there: {python} -m pip install ...",
    )


def plugin() -> Check:
    """Look whether the plugin starts by itself; where it does not, sd-scripts does not know `--adt`."""
    hooked = any(isinstance(finder, HostFinder) or type(finder).__name__ == AdtPluginHook.__name__ for finder in sys.meta_path)
    if hooked:
        return Check(OK, f"adt_plugin {__version__} starts with this Python")
    way = "install it with this Python's pip, or launch with accelerate launch -m adt_plugin SCRIPT"
    if os.environ.get("ADT_PLUGIN_DISABLE") == "1":
        way = "take ADT_PLUGIN_DISABLE out of the environment"
    return Check(PROBLEM, f"adt_plugin {__version__} does not start by itself here, so that --adt would not be known", way)


def launcher() -> Check:
    """Look to which Python the `accelerate` belongs that a shell would start."""
    found = shutil.which("accelerate")
    launch = f"activate the environment of this Python, or launch with {sys.executable} -m accelerate.commands.launch"
    if found is None:
        return Check(NOTE, "there is no accelerate on the PATH", launch)
    if Path(found).parent.resolve() in _own_folders() or _own_script(Path(found)):
        return Check(OK, f"{found} launches with this Python")
    return Check(NOTE, f"{found}, which accelerate launch would run, belongs to another Python", launch)


def _own_folders() -> set[Path]:
    """Return the folders in which this Python and its commands lie."""
    return {Path(sysconfig.get_path("scripts")).resolve(), Path(sys.executable).parent.resolve()}


def _own_script(path: Path) -> bool:
    """Return whether a script says in its first lines that this Python runs it; a program says nothing."""
    try:
        head = path.read_bytes()[:1000].decode("utf-8", errors="replace")
    except OSError:
        return False
    named = re.search(r"(/[^\n\"']*/python[\d.]*)", head) if head.startswith("#!") else None
    return named is not None and Path(named[1]).parent.resolve() in _own_folders()


def packages() -> Iterator[Check]:
    """Look for the packages and their versions, and import those of which a wrong build can be installed."""
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                PROBLEM, f"{name} is missing in this Python", "use the Python that trains, or install sd-scripts' requirements"
            )
            continue
        if name in MINIMUM and _numbers(version) < _numbers(MINIMUM[name]):
            yield Check(
                PROBLEM,
                f"{name} {version} is older than {MINIMUM[name]}, which the plugin needs",
                "update sd-scripts and install its requirements",
            )
            continue
        error = _import_error(name) if name in PACKAGES[:2] else ""
        if error:
            yield Check(
                PROBLEM, f"{name} {version} cannot be imported ({error})", "install the build that belongs to your torch"
            )
        else:
            yield Check(OK, f"{name} {version}")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version such as `2.13.0+cpu`."""
    return tuple(int(part) for part in re.split(r"[^\d.]", version)[0].split(".") if part)


def _import_error(name: str) -> str:
    """Return the first line of what goes wrong when a package is imported; empty where nothing does."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a broken build raises
        return next(iter(str(error).splitlines()), type(error).__name__)
    return ""


def device() -> Check:
    """Look for a CUDA device and its memory, and where torch sees none, for a card that it should see."""
    import torch

    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        return Check(OK, f"{name} with {memory / 2**30:.0f} GiB; adt cost tells whether your run fits")
    card = nvidia_card()
    if not card:
        return Check(NOTE, "torch sees no CUDA device, and there is no NVIDIA card: training would run on the processor")
    if torch.version.cuda is None:
        return Check(
            PROBLEM,
            f"torch {torch.__version__} is built without CUDA, so that training would not use the {card}",
            "install a build for CUDA: https://pytorch.org/get-started/locally",
        )
    return Check(
        PROBLEM,
        f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use the {card}",
        "update the driver, install a build of torch for an older CUDA, or look at CUDA_VISIBLE_DEVICES",
    )


def nvidia_card() -> str:
    """Return the name of the first NVIDIA card that its driver's own command tells of; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"GPU \d+: (.+?)(?: \(UUID|\n|$)", listed)
    return found[1] if found else ""


def backbone(name: str) -> Check:
    """Look for the backbone: a folder, the cache of the hub, or the hub."""
    rest = name.removeprefix("timm:")
    if Path(rest).is_dir():
        return Check(OK, f"backbone {name} is a folder")
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = [try_to_load_from_cache(rest, file) for file in ("config.json", "model.safetensors")]
    except ValueError:
        return Check(PROBLEM, f"backbone {name} is no folder and no name on the hub", "correct --adt_backbone")
    if all(isinstance(path, str) for path in cached):
        return Check(OK, f"backbone {name} is in the cache")
    if hub_answers():
        return Check(
            OK, f"backbone {name} is not in the cache yet; the hub answers, and the first run downloads it (about 350 MB)"
        )
    return Check(
        PROBLEM,
        f"backbone {name} is not in the cache, and the hub does not answer",
        f"run {download_command(rest)} where there is a network, or give a folder with --adt_backbone",
    )


def hub_answers() -> bool:
    """Return whether the hub may be asked and can be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(os.environ.get("HF_ENDPOINT", HUB), method="HEAD"), timeout=5).close()
    except HTTPError:
        return True  # it answers, if only with an error
    except OSError:
        return False
    return True


def disk(folder: Path) -> Check:
    """Look for room."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 10**9:.0f} GB free on the disk of {folder}"
    return Check(OK, found) if free >= FREE_DISK else Check(PROBLEM, found, "make room")


def host_checks(host: Path | None, verbose: bool, has_torch: bool) -> Iterator[Check | str]:
    """Look at the work tree and at every trainer's seams; strings are details."""
    if host is None:
        yield Check(PROBLEM, "no sd-scripts here", "run this in its folder or the GUI's, or name the folder")
        return
    if not has_torch:
        yield Check(NOTE, f"sd-scripts in {host}", "its trainers are looked at once torch is there")
        return
    from adt_plugin.host import doctor

    yield Check(OK, f"sd-scripts {doctor.version(host)} in {host}")
    for script, family in doctor.trainers(host):
        findings = doctor.examine(host, family)
        if all(finding.found for finding in findings):
            yield Check(OK, f"{script} ({family.name}): served")
        else:
            yield Check(
                PROBLEM, f"{script} ({family.name}): NOT SERVED", "update the plugin or sd-scripts; -v says what is missing"
            )
        if verbose:
            yield from (f"           {finding}" for finding in findings)
    yield f"         not served: {', '.join(doctor.not_served(host)) or 'none'}"


def examine(folder: Path | None, name: str, verbose: bool) -> Iterator[Check | str]:
    """Yield everything that is found, in the order in which a person would look."""
    host = find_host(folder)
    yield from this_python(host)
    yield plugin()
    yield launcher()
    found = list(packages())
    yield from found
    broken = [check.found for check in found if check.state == PROBLEM]
    has_torch = not any(line.startswith("torch ") for line in broken)
    if has_torch:
        yield device()
    whole = has_torch and not any(line.startswith(("diffusers ", "transformers ", "accelerate ")) for line in broken)
    yield from host_checks(host, verbose, whole)
    if importlib.util.find_spec("huggingface_hub"):
        yield backbone(name)
    yield disk(host or Path.cwd())


def main(arguments: Sequence[str], prog: str = "adt doctor") -> None:
    """Print what is found; the last line says whether all is ready.

    Args:
        arguments: the command line after the command's name.
        prog: what the help calls the command.

    Raises:
        SystemExit: 2 for wrong arguments, 1 where it is not ready.
    """
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument("folder", type=Path, nargs="?", help="of sd-scripts or of the GUI (default: where you are)")
    parser.add_argument("--adt_backbone", default=ADTConfig().backbone, help="look for this one (default: %(default)s)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every seam of every trainer")
    given = parser.parse_args(arguments)
    problems = 0
    for check in examine(given.folder, given.adt_backbone, given.verbose):
        print(check)
        if isinstance(check, Check) and check.state == PROBLEM:
            problems += 1
    print(f"not ready: {problems} problem{'s' if problems > 1 else ''}, see above" if problems else "ready")
    if problems:
        raise SystemExit(1)
