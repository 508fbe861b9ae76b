"""`python -m adt_plugin`: the miniature, and a launcher for environments that ignore `.pth` files."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

USAGE = """usage: python -m adt_plugin demo                      the built-in miniature (no host, no weights, no network)
       python -m adt_plugin bench                     its benchmark
       python -m adt_plugin cost                      what a run costs in time and memory, counted or measured
       python -m adt_plugin doctor FOLDER             whether a work tree of sd-scripts can be served
       accelerate launch -m adt_plugin SCRIPT.py ...  a training script of sd-scripts, with the plugin hooked in"""


def run_script(script: str, arguments: list[str]) -> None:
    """Run a training script as `python SCRIPT.py` would, with the plugin hooked in."""
    from adt_plugin import register

    if not Path(script).is_file():
        raise SystemExit(f"adt_plugin: {script} is neither a command nor a file.\n{USAGE}")
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    register()
    runpy.run_path(script, run_name="__main__")


def main(arguments: list[str]) -> None:
    """Dispatch to a command of the plugin or to a training script."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
    elif arguments[0] == "demo":
        from adt_plugin.demo.cli import demo_main

        demo_main(arguments[1:])
    elif arguments[0] == "bench":
        from adt_plugin.demo.cli import bench_main

        bench_main(arguments[1:])
    elif arguments[0] == "cost":
        from adt_plugin.cost.cli import cost_main

        cost_main(arguments[1:])
    elif arguments[0] == "doctor":
        from adt_plugin.host.doctor import main as doctor_main

        doctor_main(arguments[1:])
    else:
        run_script(arguments[0], arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
