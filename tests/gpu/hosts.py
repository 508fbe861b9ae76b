"""Runs of the host's own scripts, on random models of true size or on tiny ones; what they took, and what they said."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

from gpu.setting import Result, Setting
from tinyhost.models import (
    HostModel,
    seeded,
    true_size,
    true_size_sd15,
    true_size_sdxl,
    write_dinov2,
    write_images,
    write_preprocessor,
    write_tiny_model,
)
from tinyhost.run import NO_HOST, CompletedRun, find_host, run_host

STEPS = 30
"""Optimizer steps of a run at true size."""

LIMIT = 1500
"""Seconds that one run may take."""


def host_run(
    setting: Setting, label: str, script: str, family: str, options: tuple[str, ...], adt: bool, tiny: bool = False
) -> Result:
    """Run a script of the host.

    Args:
        label: names the folder of its output.
        adt: False makes the plugin as good as uninstalled.
        tiny: a tiny model also on a card.

    Raises:
        FileNotFoundError: there is no work tree of the host.
        RuntimeError: the run failed; with the end of its log.
    """
    host, small = find_host(), tiny or setting.miniature
    if host is None:
        raise FileNotFoundError(NO_HOST)
    output = setting.out / "host" / label.replace(" ", "-")
    shutil.rmtree(output, ignore_errors=True)
    side = 64 if small else {"sd15": 512}.get(family, 1024)
    run = run_host(
        script,
        *options,
        *sized(script, side, small),
        *(plugin(setting, small) if adt else ()),
        host_dir=host,
        model=host_model(setting.out / "models", family, small),
        images=images(setting.out / "images", side),
        output_dir=output,
        cpu=setting.device == "cpu",
        env={"TINYHOST_PEAK": str(output / "peak.json")} | ({} if adt else {"ADT_PLUGIN_DISABLE": "1"}),
        timeout=LIMIT,
    )
    return told(run)


def sized(script: str, side: int, small: bool) -> tuple[str, ...]:
    """The options that give a run its size; they come last, and win."""
    rank = ("--network_dim", "4" if small else "16") if script.endswith("train_network.py") else ()
    buckets = ("--min_bucket_reso", "64", "--max_bucket_reso", "128") if small else ()
    return ("--resolution", f"{side},{side}", "--max_train_steps", str(2 if small else STEPS), *rank, *buckets)


def plugin(setting: Setting, small: bool) -> tuple[str, ...]:
    """The plugin's options: a backbone that is there, a short warm-up, the seconds of every stage."""
    folder = backbone(setting.out / "models", small)
    options = ("--adt", "--adt_backbone", str(folder), "--adt_profile", "--adt_begin", "0", "--adt_lr", "0")
    tiny = ("--adt_warmup", "0", "--adt_image_size", "56", "--adt_steps", "2", "--adt_every", "1")
    return (*options, *(tiny if small else ("--adt_warmup", "4")))


def told(run: CompletedRun) -> Result:
    """What a run took and said."""
    if run.returncode != 0:
        raise RuntimeError("\n".join(run.log.strip().splitlines()[-30:]))
    found: Result = {}
    peak = run.output_dir / "peak.json"
    if peak.exists():
        found |= json.loads(peak.read_text(encoding="utf-8"))
    bars = re.findall(r"(\d+)/\1 \[(?:(\d+):)?(\d+):(\d+)<", run.log)
    if bars:
        steps, hours, minutes, seconds = (int(number or 0) for number in bars[-1])
        found["step_seconds"] = (3600 * hours + 60 * minutes + seconds) / steps
    turns = [row for path in run.output_dir.glob("*-adt.jsonl") for row in map(json.loads, path.read_text().splitlines())]
    turns = [row for row in turns if row["event"] == "turn"]
    if turns:
        last = turns[-1]
        found |= {"turns": len(turns), "skipped": sum(row["skipped"] for row in turns), "grad_norm": last["grad_norm"]}
        found["turn_seconds"] = sum(value for stage, value in last["seconds"].items() if stage != "host")
        found["stages"] = last["seconds"]
    return found


TRUE_SIZE = {"sd15": true_size_sd15, "sdxl": true_size_sdxl}
CHECKPOINTS = {"sd15": ("sd", "sd15"), "sdxl": ("sdxl", "sdxl.safetensors")}
"""Of the models of true size: the kit's family, and what the kit calls the checkpoint."""


@cache
def host_model(folder: Path, family: str, small: bool) -> HostModel:
    """A random model, written once; it stays for the next call of the script."""
    kit, name = CHECKPOINTS.get(family, (family, ""))
    if small:
        return write_tiny_model(kit, folder / f"tiny-{kit}")
    done = folder / f"{family}.done"
    if done.exists():
        return true_size(kit, folder / family / name)
    shutil.rmtree(folder / family, ignore_errors=True)
    model = TRUE_SIZE[family](folder / family)
    done.touch()
    return model


@cache
def backbone(folder: Path, small: bool) -> Path:
    """A random DINOv2-base, or a tiny one."""
    path = folder / ("tiny-dino" if small else "dino")
    if (path / "preprocessor_config.json").exists():
        return path
    if small:
        return write_dinov2(path)
    from transformers import Dinov2Config, Dinov2Model

    with seeded(0):
        Dinov2Model(Dinov2Config(patch_size=14, image_size=518)).save_pretrained(path)
    write_preprocessor(path, size=224)
    return path


@cache
def images(folder: Path, side: int) -> Path:
    """Four captioned images of this size."""
    return write_images(folder / str(side), sizes=((side, side),))
