"""Archives of the plugin, and a Python in which one is installed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def built(kind: str, folder: Path, source: Path = REPOSITORY) -> Path:
    """Build an archive of the plugin (`wheel`, `editable` or `sdist`) and return its path."""
    build = f"import hatchling.build as b; print(b.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, text=True)
    return folder / done.stdout.splitlines()[-1]


def installed(wheel: Path, folder: Path) -> Path:
    """Make a virtual environment with a wheel and nothing else in it, and return its `bin`, or `Scripts`.

    The libraries are those of the environment that runs this, without its own install of the plugin and its `.pth` files.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    places = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    Path(places["purelib"], "libraries.pth").write_text(str(libraries(folder / "libraries")))
    scripts = Path(places["scripts"])
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    return scripts


def libraries(folder: Path) -> Path:
    """Fill a folder with links to all that is installed here but the plugin; `.pth` files beside them are not read."""
    folder.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for library in Path(place).iterdir():
            if not library.name.startswith("adt_plugin"):
                (folder / library.name).symlink_to(library)
    return folder
