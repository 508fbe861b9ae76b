"""Archives and a repository of the plugin, and a Python in which one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tinyhost.run import run_to_end

REPOSITORY = Path(__file__).resolve().parents[2]


def built(kind: str, folder: Path, source: Path = REPOSITORY) -> Path:
    """Build an archive of the plugin (`wheel`, `editable` or `sdist`) and return its path."""
    build = f"import hatchling.build as b; print(b.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, text=True)
    return folder / done.stdout.splitlines()[-1]


def repository(folder: Path) -> str:
    """Make a git repository with all that is tracked here, and return its address for pip.

    It has one commit and is no clone: git does not come to an end where pip clones a clone that is shallow, as CI's are.
    """
    folder.mkdir(parents=True)
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    for words in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "--quiet", "--no-verify", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    return f"git+{folder.as_uri()}"


def installed(source: Path | str, folder: Path) -> Path:
    """Make a virtual environment with the plugin and nothing else in it, and return its `bin`, or `Scripts`.

    The libraries are those of the environment that runs this, without its own install of the plugin and its `.pth` files.
    Nothing is fetched: what builds the plugin, where that is needed, is among them.

    Args:
        source: a wheel, or an address of `repository`.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    places = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    Path(places["purelib"], "libraries.pth").write_text(str(libraries(folder / "libraries")))
    scripts = Path(places["scripts"])
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", source]
    code, _, trouble = run_to_end([str(word) for word in install], folder, dict(os.environ), timeout=120)
    assert code == 0, trouble
    return scripts


def libraries(folder: Path) -> Path:
    """Fill a folder with links to all that is installed here but the plugin; `.pth` files beside them are not read."""
    folder.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for library in Path(place).iterdir():
            if not library.name.startswith("adt_plugin"):
                (folder / library.name).symlink_to(library)
    return folder
