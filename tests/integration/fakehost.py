"""Make-believe hosts on disk: packages named `library` in the layouts of different versions, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ARGUMENTS = """
def add_training_arguments(parser, support_dreambooth=True):
    parser.add_argument("--learning_rate", type=float, default=1.0)

def verify_training_args(args):
    print("verified by the host")
"""

LAYOUTS = {
    "v0.10": {"train_util.py": ARGUMENTS},
    "v0.11": {
        "args.py": ARGUMENTS,
        "train_util.py": "from library.args import add_training_arguments, verify_training_args\n",
    },
}

SCRIPT = """
import argparse, sys
from library.train_util import add_training_arguments as by_name
import library.train_util as train_util
import adt_user
parser = argparse.ArgumentParser()
by_name(parser, True)
args = parser.parse_args()
train_util.verify_training_args(args)
print("model loaded")
"""


def write_fake_host(folder: Path, modules: dict[str, str], script: str = SCRIPT) -> Path:
    """A work tree with `library/<name>` for each module, a `train_network.py`, and an empty module `adt_user`."""
    library = folder / "library"
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    (folder / "adt_user.py").touch()
    for name, source in modules.items():
        (library / name).write_text(source)
    (folder / "train_network.py").write_text(script)
    return folder


def run_python(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in `cwd`; the environment is the caller's with `env` over it."""
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | (env or {})
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=variables, capture_output=True, text=True, timeout=120
    )
