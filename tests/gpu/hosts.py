"""Runs of the host's own scripts, on random models of true size or on tiny ones; what they took, and what they said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache, partial
from pathlib import Path

from gpu.setting import Result, Setting
from tinyhost.models import HostModel, seeded, write_dinov2, write_images, write_preprocessor, write_tiny_model
from tinyhost.run import NO_HOST, CompletedRun, find_host, run_host
from tinyhost.true_size import write_flux, write_sd3, write_sd15, write_sdxl, written

STEPS, FLUX_STEPS = 30, 14
"""Optimizer steps of a run at true size."""

WARMUP = 4
"""Steps whose turns train the discriminator alone; after the next one, the first that is whole, a run has its pace."""

LIMIT, TO_END = 1500.0, 5.0
"""Seconds that one run may take, and those that are kept for saying that it took too long."""


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
    output = setting.place("host") / label.replace(" ", "-")
    shutil.rmtree(output, ignore_errors=True)
    side = 64 if small else {"sd15": 512}.get(family, 1024)
    start = partial(
        run_host,
        script,
        *options,
        *sized(script, family, side, small),
        *(plugin(setting, small) if adt else ()),
        host_dir=host,
        model=host_model(setting.place("models"), family, small),
        images=images(setting.place("images"), side),
        output_dir=output,
        cpu=setting.device == "cpu",
        env=environment(setting, output, adt),
    )
    try:
        return told(start(timeout=min(LIMIT, max(setting.limit - TO_END, 1.0))))
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"took longer than {late.timeout:.0f} s\n{end_of(text(late.output) + text(late.stderr))}") from late
    finally:  # what was trained is worth nothing, and of full fine-tuning larger than the model
        for checkpoint in output.glob("*.safetensors"):
            checkpoint.unlink()


def environment(setting: Setting, output: Path, adt: bool) -> dict[str, str]:
    """Variables of the host's process: on a card it has all cores to load with, and a plain run does not know the plugin."""
    threads = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)} if setting.device == "cuda" else {}
    peak = {"TINYHOST_PEAK": str(output / "peak.json")} if setting.device == "cuda" else {}
    return threads | peak | ({} if adt else {"ADT_PLUGIN_DISABLE": "1"})


def sized(script: str, family: str, side: int, small: bool) -> tuple[str, ...]:
    """The options that give a run its size; they come last, and win."""
    steps = 2 if small else FLUX_STEPS if family == "flux" else STEPS
    rank = ("--network_dim", "4" if small else "16") if script.endswith("train_network.py") else ()
    buckets = ("--min_bucket_reso", "64", "--max_bucket_reso", "128") if small else ()
    return ("--resolution", f"{side},{side}", "--max_train_steps", str(steps), *rank, *buckets)


def plugin(setting: Setting, small: bool) -> tuple[str, ...]:
    """The plugin's options: a backbone that is there, a short warm-up, the seconds of every stage."""
    folder = backbone(setting.place("models"), small)
    options = ("--adt", "--adt_backbone", str(folder), "--adt_profile", "--adt_begin", "0", "--adt_lr", "0")
    tiny = ("--adt_warmup", "0", "--adt_image_size", "56", "--adt_steps", "2", "--adt_every", "1")
    return (*options, *(tiny if small else ("--adt_warmup", str(WARMUP))))


def text(printed: str | bytes | None) -> str:
    """What a process printed; that of one that took too long is still bytes."""
    return printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""


def end_of(log: str, lines: int = 30) -> str:
    """The last lines; of a progress bar, which returns to the beginning of its line, what was to be seen in the end."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[-1] for line in log.strip().split("\n")[-lines:])


def told(run: CompletedRun) -> Result:
    """What a run took and said."""
    if run.returncode != 0:
        raise RuntimeError(end_of(run.log))
    found: Result = {}
    peak = run.output_dir / "peak.json"
    if peak.exists():
        found |= json.loads(peak.read_text(encoding="utf-8"))
    found |= pace(run.log)
    turns = [row for path in run.output_dir.glob("*-adt.jsonl") for row in map(json.loads, path.read_text().splitlines())]
    turns = [row for row in turns if row["event"] == "turn"]
    if turns:
        last = turns[-1]
        found |= {"turns": len(turns), "skipped": sum(row["skipped"] for row in turns), "grad_norm": last["grad_norm"]}
        found["turn_seconds"] = sum(value for stage, value in last["seconds"].items() if stage != "host")
        found["stages"] = last["seconds"]
    return found


BAR = re.compile(r"(\d+)/(\d+) \[[^\]]*?([\d.]+)(s/it|it/s)")


def pace(log: str) -> Result:
    """Seconds of a step by the host's progress bar, which prints the mean so far: of all, and of those after the warm-up's."""
    bars = [(int(done), int(steps), float(rate), unit) for done, steps, rate, unit in BAR.findall(log)]
    spent = {
        done: done * (rate if unit == "s/it" else 1 / rate)
        for done, steps, rate, unit in bars
        if steps == bars[-1][1] and rate > 0
    }
    if not spent:
        return {}
    steps = max(spent)
    found: Result = {"step_seconds": spent[steps] / steps}
    before = min((done for done in spent if WARMUP < done < steps), default=None)
    if before is not None:
        found["later_step_seconds"] = (spent[steps] - spent[before]) / (steps - before)
    return found


TRUE_SIZE = {"sd15": write_sd15, "sdxl": write_sdxl, "sd3": write_sd3, "flux": partial(write_flux, dtype="float8_e4m3fn")}
"""FLUX in fp8, as it is published for smaller cards: half the disk, and nothing to convert whenever it is loaded."""

KITS = {"sd15": "sd"}
"""What the kit calls a family, where that is another name."""


@cache
def host_model(folder: Path, family: str, small: bool) -> HostModel:
    """A random model, written once; it stays for the next call of the script."""
    if small:
        kit = KITS.get(family, family)
        return write_tiny_model(kit, folder / f"tiny-{kit}")
    done = folder / f"{family}.done"
    if done.exists():
        return written(family, folder / family)
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
