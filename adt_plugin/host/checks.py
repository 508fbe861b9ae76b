"""What cannot work with `--adt`, said before any model is loaded: one sentence that names the flag and the way out."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import toml
from accelerate import DistributedType
from accelerate.utils import DynamoBackend

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.run.files import tensor_shapes
from adt_plugin.core.schedule import TurnSchedule, start_range
from adt_plugin.host.families import FAMILIES, Family
from adt_plugin.host.trained import PRESERVED

logger = logging.getLogger(__name__)

REFUSED = {
    "network_train_text_encoder_only": "leaves no denoiser parameter to train: train the U-Net as well",
    "train_inpainting": "gives the U-Net channels that the unroll does not have: train without it",
}
"""Host options that are refused, and why."""

REFUSED_WITH_DEEPSPEED = {
    ("zero_stage", 3): "partitions the weights themselves, at which sd-scripts' own trainers fail with or without --adt: take "
    "stage 1 or 2",
    ("offload_optimizer_device", "nvme"): "is for ZeRO stage 3 alone: take cpu",
    ("offload_param_device", "nvme"): "is for ZeRO stage 3 alone: leave it out",
    ("offload_param_device", "cpu"): "is for ZeRO stage 3 alone: leave it out",
}
"""Values of the host's options for `--deepspeed` that are refused, and why."""

CAPTURES_CALLS = {
    "dynamo_backend": ("torch_compile", ("cudagraphs",)),
    "compile_mode": ("compile", ("reduce-overhead", "max-autotune")),
}
"""Options that compile with CUDA graphs: what switches them on, and their values that do."""

STEPS_INSIDE = "steps the optimizer inside the backward pass"

ONE_PASS_ONLY = {
    "deepspeed": STEPS_INSIDE,
    "ddp_static_graph": "allows one backward pass in a batch",
    "fused_backward_pass": STEPS_INSIDE,
    "fused_optimizer_groups": STEPS_INSIDE,
    "blockwise_fused_optimizers": STEPS_INSIDE,
    "adt_train_text_encoder": "shares the text encoder's own graph with the diffusion loss",
}
"""Options that leave one backward pass for the diffusion loss and the turn, and why."""

PASSES_OF_ITS_OWN = "unsloth_offload_checkpointing"
"""Anima's checkpointing that moves activations to the CPU."""

OF_TEXT = "lora_te"
"""How names of a LoRA's part for text encoders begin, in files of sd-scripts and of LyCORIS."""

SWAPS_BLOCKS = ("blocks_to_swap", "double_blocks_to_swap", "single_blocks_to_swap", "split_mode")
"""Options that swap blocks between devices: one graph at a time, each pulled back before the next call."""

OTHER_TRAINERS = (
    "train_textual_inversion.py",
    "train_textual_inversion_XTI.py",
    "sdxl_train_textual_inversion.py",
    "train_control_net.py",
    "train_controlnet.py",
    "sdxl_train_control_net.py",
    "sdxl_train_control_net_lllite.py",
    "flux_train_control_net.py",
    "sdxl_train_control_net_lllite_old.py",
    "anima_train_control_net_lllite.py",
    "train_leco.py",
    "sdxl_train_leco.py",
)
"""The host's trainers that are not served; a name that is neither here nor served is a fork's own trainer."""

SERVED_PROCESSES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""How accelerate may spread a run: each of the others takes gradients or optimizer steps into its own hands.

DeepSpeed does, too, and is served where the host's own `--deepspeed` asks for it, before anything is loaded.
"""

PREVIEW_SIZE = (128, 128)
"""Height and width of latents, for the check of the grid before any batch exists."""


def check_host_options(args: argparse.Namespace, config: ADTConfig) -> Family:
    """Return the family of the running trainer, if every option can be served.

    Raises:
        ConfigError: the first thing that cannot.
    """
    family = find_family(Path(sys.argv[0]).name)
    for name, reason in REFUSED.items():
        if getattr(args, name, False):
            raise ConfigError(f"--{name} cannot be combined with --adt, because it {reason}, or remove --adt.")
    _check_deepspeed(args)
    _check_compile(args)
    _check_output(args)
    _check_learning_rate(args)
    _check_grid(args, config, family)
    _check_prediction(args)
    _warn_of_lost_parts(args)
    # With epochs, the number of steps is known only when the data are; with a state, the turns that it has behind it.
    if not getattr(args, "max_train_epochs", None) and not getattr(args, "resume", None):
        _check_schedule(args, config)
    return family


def with_memory(args: argparse.Namespace, config: ADTConfig) -> ADTConfig:
    """Return the options with `--adt_memory auto` settled where the run leaves it no choice.

    Raises:
        ConfigError: the run needs one backward pass for both, or one for every step, and another way was asked for.
    """
    swap = next((name for name in SWAPS_BLOCKS if getattr(args, name, None)), None)
    one_pass = next((name for name in ONE_PASS_ONLY if getattr(args, name, None)), None)
    inside = next((name for name, why in ONE_PASS_ONLY.items() if why == STEPS_INSIDE and getattr(args, name, None)), None)
    if inside and getattr(args, PASSES_OF_ITS_OWN, False):
        raise ConfigError(
            f"--{PASSES_OF_ITS_OWN} pulls every block back in a pass of its own, in each of which --{inside} would step the "
            "optimizer: with --adt leave one of them out, or take --gradient_checkpointing alone."
        )
    if swap and one_pass:
        raise ConfigError(
            f"--{swap} needs a backward pass for every trained step, and --{one_pass} {ONE_PASS_ONLY[one_pass]}: with --adt "
            "leave one of them out."
        )
    if one_pass:
        _check_memory(config, "joined", f"--{one_pass} {ONE_PASS_ONLY[one_pass]}, so that the turn must share it")
        return replace(config, memory="joined")
    if swap:  # auto stays: the run keeps no graphs, and may still step down
        _check_memory(config, "low", f"--{swap} needs a backward pass for every trained step, right after its call")
    return config


def _check_memory(config: ADTConfig, memory: str, reason: str) -> None:
    """Refuse an `--adt_memory` that is neither this one nor auto."""
    if config.memory not in (memory, "auto"):
        raise ConfigError(f"{reason}: add --adt_memory {memory}, or auto.")


def find_family(script: str) -> Family:
    """Return the family that a trainer's file name stands for; for a fork's own name, the one whose prefix it has.

    Raises:
        ConfigError: a trainer of the host that the plugin does not serve.
    """
    served = {name: family for family in FAMILIES for name in family.scripts}
    if script in OTHER_TRAINERS:
        raise ConfigError(f"--adt does not work with {script}, only with {', '.join(served)}: remove --adt to train with it.")
    by_prefix = sorted(FAMILIES, key=lambda family: len(family.prefix))
    return served.get(script) or next(family for family in reversed(by_prefix) if script.startswith(family.prefix))


def memory_levers(args: argparse.Namespace) -> Iterator[str]:
    """Yield the host's own options that would need less memory and are not set, most useful first."""
    for name in ("gradient_checkpointing", "cache_latents", "cache_text_encoder_outputs"):
        if getattr(args, name, None) is False:
            yield f"--{name}"
    batch = getattr(args, "train_batch_size", None) or 1
    if batch > 1:
        yield f"--train_batch_size {batch // 2} (now {batch})"
    optimizer = getattr(args, "optimizer_type", None) or "AdamW"
    if optimizer.lower() == "adamw" and not getattr(args, "use_8bit_adam", False):
        yield f"--optimizer_type AdamW8bit (now {optimizer})"


def trained_range(args: argparse.Namespace, family: Family) -> tuple[float, float] | None:
    """Return the timesteps [low, high) that the run trains; None for all."""
    low, high = args.min_timestep, args.max_timestep
    if not family.heeds_timestep_range or (low is None and high is None):
        return None
    return low or 0, float("inf") if high is None else high


def _check_schedule(args: argparse.Namespace, config: ADTConfig) -> None:
    """Refuse a run that ends before its warm-up; with weight 0 the discriminator alone is wanted."""
    if config.weight > 0:
        steps, batches = args.max_train_steps, args.gradient_accumulation_steps
        TurnSchedule.from_config(config, steps, batches).check(steps, batches)


def _check_prediction(args: argparse.Namespace) -> None:
    """Warn where the diffusion loss reads the output otherwise than the turn, which takes it as raw velocity like sampling."""
    if getattr(args, "model_prediction_type", "raw") != "raw":
        logger.warning(
            "--model_prediction_type %s weighs the diffusion loss by the noise level; the unroll reads the model's raw "
            "velocity, as sampling does. --model_prediction_type raw trains both alike.",
            args.model_prediction_type,
        )


def weighs_images(args: argparse.Namespace) -> bool:
    """Return whether the host's loss weighs some images otherwise than others: regularisation images, or preserved ones."""
    path = getattr(args, "dataset_config", None)
    settings = load_settings(Path(path)) if path else {}
    return getattr(args, "prior_loss_weight", 1.0) != 1.0 or any(key == PRESERVED and value for key, value in _items(settings))


def load_settings(path: Path) -> object:
    """Read a TOML or JSON file as the host does; empty where it cannot be read, which the host then reports itself."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else toml.loads(text)
    except (OSError, ValueError):
        return {}


def _items(settings: object) -> Iterator[tuple[str, object]]:
    """Yield every key and value at any depth."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield key, value
            yield from _items(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _items(value)


def _check_deepspeed(args: argparse.Namespace) -> None:
    """Refuse what DeepSpeed spreads over processes or devices beyond optimizer and gradients."""
    for (name, value), reason in REFUSED_WITH_DEEPSPEED.items():
        if getattr(args, "deepspeed", False) and getattr(args, name, None) == value:
            raise ConfigError(f"--{name} {value} cannot be combined with --adt, because it {reason}, or remove --adt.")


def _check_compile(args: argparse.Namespace) -> None:
    """Refuse CUDA graphs: the outputs of all of an unroll's calls would lie in the same memory."""
    for name, (switch, values) in CAPTURES_CALLS.items():
        value = getattr(args, name, None)
        if getattr(args, switch, False) and value in values:
            raise ConfigError(
                f"--{name} {value} captures CUDA graphs, in which each call's output takes the place of the last one's, and a "
                f"turn keeps several: leave --{name} at its default."
            )


def _check_output(args: argparse.Namespace) -> None:
    """Write a byte where the trained file will be saved: the host finds out after the training."""
    folder = getattr(args, "output_dir", None)
    if not folder:
        raise ConfigError("--adt writes its rows and pictures beside the trained file: set --output_dir.")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--output_dir {folder} cannot be written ({reason}): choose another folder, or free it.") from error


def _check_learning_rate(args: argparse.Namespace) -> None:
    """Refuse a denoiser that stands still: the turn's gradient reaches nothing else."""
    if _finds_its_rate(args):
        return
    unet_lr = getattr(args, "unet_lr", None)
    if unet_lr == 0 or (unet_lr is None and args.learning_rate == 0):
        flag = "--learning_rate" if unet_lr is None else "--unet_lr"
        raise ConfigError(f"{flag} 0 leaves --adt nothing to train: raise it, or remove --adt.")


def _finds_its_rate(args: argparse.Namespace) -> bool:
    """Return whether Adafactor's relative step makes the rate, as it does by default; sd-scripts then wants a rate of 0."""
    given = "".join(getattr(args, "optimizer_args", None) or []).replace(" ", "").lower()
    return str(getattr(args, "optimizer_type", "")).lower() == "adafactor" and "relative_step=false" not in given


def _check_grid(args: argparse.Namespace, config: ADTConfig, family: Family) -> None:
    """Try the sampler on a schedule of the right kind, as the run will build it on the host's own."""
    sampler, longest = family.schedule.preview(config, args), start_range(config)[1]
    family.schedule.fit(sampler, config, PREVIEW_SIZE)
    sampler.check_grid(config.steps)
    sampler.prepare(config.steps, longest)
    walked = [round(timestep) for timestep in sampler.timesteps[-longest:].tolist()]
    low, high = trained_range(args, family) or (0, float("inf"))
    if not any(low <= timestep < high for timestep in walked):
        raise ConfigError(
            f"--min_timestep and --max_timestep leave no step of the inference grid to train (it has {walked}): "
            "widen them, or raise --adt_steps or --adt_start_max."
        )


def _warn_of_lost_parts(args: argparse.Namespace) -> None:
    """Warn where a LoRA's part for text encoders will be missing in what is saved: sd-scripts drops it without a word."""
    if not getattr(args, "network_train_unet_only", False):
        return
    file = Path(getattr(args, "network_weights", None) or "")
    if any(name.startswith(OF_TEXT) for name in tensor_shapes(file)):
        logger.warning(
            "%s has a part for text encoders, which --network_train_unet_only leaves out of what is saved. To keep it, "
            "train without that option and without --cache_text_encoder_outputs.",
            file,
        )


def check_processes(accelerator: Any, deepspeed: bool = False) -> None:
    """Check that the host's accelerator spreads the run in a way that a turn can follow.

    Args:
        deepspeed: whether the host has been asked for it.

    Raises:
        ConfigError: it does not.
    """
    served = (*SERVED_PROCESSES, DistributedType.DEEPSPEED) if deepspeed else SERVED_PROCESSES
    kind = accelerator.distributed_type
    if kind not in served:
        way_out = "use sd-scripts' --deepspeed, turn it off" if kind == DistributedType.DEEPSPEED else "turn it off"
        raise ConfigError(f"--adt does not work under {kind.value}: {way_out} in accelerate's configuration, or remove --adt.")
    if kind == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.hf_ds_config.is_zero3():
        raise ConfigError(
            "DeepSpeed's ZeRO stage 3, which accelerate's configuration asks for, cannot be combined with --adt, because it "
            f"{REFUSED_WITH_DEEPSPEED['zero_stage', 3]}, or remove --adt."
        )
    if accelerator.num_processes > 1 and accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise ConfigError(
            "--torch_compile hides the wrapper that averages gradients over processes: with --adt and several processes train "
            "without it."
        )
