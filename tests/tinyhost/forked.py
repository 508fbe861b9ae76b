"""`python forked.py FOLDER`: imports what every run of the host imports, then forks a process for each line of its input.

A line is a JSON object: the script and its arguments as `command`, `cwd`, `env`, the two files of `printed` that stdout and
stderr go to, and `bytecode`, a folder for compiled modules. It is answered by the process's id, and by its exit status as that
ends. The forked process then is as one that Python has just started with this script.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

PLACES = {"HF_HOME": "home", "HF_HUB_CACHE": "hub"}
"""Variables that are read during an import -> the link that they then name, which is led to the run's own folder."""

IMPORTED = (
    *("torch", "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard", "torchvision", "numpy", "scipy.stats"),
    *("sklearn.metrics", "pandas", "cv2", "PIL.Image", "einops", "toml", "rich.logging", "imagesize", "voluptuous"),
    *("safetensors.torch", "huggingface_hub", "accelerate", "transformers", "transformers.modeling_utils", "diffusers"),
    *("diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition", "diffusers.schedulers"),
    *("diffusers.pipelines.stable_diffusion", "diffusers.pipelines.stable_diffusion_xl", "transformers.models.clip"),
    *("transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip", "transformers.models.t5"),
    *("transformers.models.dinov2.modeling_dinov2", "transformers.models.t5.modeling_t5", "peft"),
)
"""None of the host's own, nor the plugin's. What an environment does not have is left out."""


def known_models() -> None:
    """Import every model of transformers', as it does itself to tell what a configuration belongs to."""
    from transformers import AutoModel

    AutoModel._model_mapping.keys()


def requested(folder: Path) -> dict[str, Any]:
    """Wait for requests and fork; returns in the forked process alone, with what it was forked for."""
    print("ready", flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        lead_links(folder, request["env"])
        pid = os.fork()
        if pid == 0:
            return request
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    raise SystemExit(0)


def lead_links(folder: Path, env: dict[str, str]) -> None:
    """Lead the links to the folders that a request's environment names."""
    home = Path(env["HF_HOME"])
    for link, target in (("home", home), ("hub", Path(env.get("HF_HUB_CACHE", home / "hub")))):
        (folder / link).unlink()
        (folder / link).symlink_to(target)


def become(request: dict[str, Any]) -> None:
    """Make this process what Python would have started: session, directory, environment, files, arguments."""
    os.setsid()
    for number, (name, mode) in enumerate(zip([os.devnull, *request["printed"]], "rww", strict=True)):
        with open(name, mode) as file:  # noqa: PTH123
            os.dup2(file.fileno(), number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    script = Path(request["command"][0]).resolve()
    sys.argv = list(request["command"])
    sys.path.insert(0, str(script.parent))
    sys.dont_write_bytecode, sys.pycache_prefix = False, request["bytecode"]  # the host's modules are compiled once
    shrink(request["env"].get("TINYHOST_FAMILY"))
    draw_anew()


def shrink(family: str | None) -> None:
    """Do what the start-up module does for a family."""
    import sitecustomize

    if family:
        sitecustomize.install().actions.update(sitecustomize.family_actions(family))


def draw_anew() -> None:
    """Seed what an import has seeded, in every process otherwise."""
    import random

    import numpy

    random.seed()
    numpy.random.seed()


if __name__ == "__main__":
    del sys.path[0]  # this folder, in which there are modules named as those of others
    for wanted in IMPORTED:
        with suppress(ImportError):
            import_module(wanted)
    with suppress(ImportError):
        known_models()
    gc.collect()
    gc.freeze()
    become(requested(Path(sys.argv[1])))
    runpy.run_path(sys.argv[0], run_name="__main__")
