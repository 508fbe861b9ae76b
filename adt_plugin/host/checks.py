"""What cannot work with `--adt`, said before any model is loaded: one sentence that names the flag and the way out."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from adt_plugin import sampling
from adt_plugin.config import ADTConfig, ConfigError
from adt_plugin.host.families import FAMILIES, Family
from adt_plugin.turn import start_range

logger = logging.getLogger(__name__)

REFUSED = {
    "deepspeed": "steps the optimizer inside every backward pass: train without it",
    "ddp_static_graph": "forbids the extra passes of an adversarial turn: train without it",
    "fused_backward_pass": "steps the optimizer inside every backward pass: train without it",
    "fused_optimizer_groups": "steps the optimizer inside the backward pass: train without it",
    "blockwise_fused_optimizers": "steps the optimizer inside the backward pass: train without it",
    "network_train_text_encoder_only": "leaves no denoiser parameter to train: train the U-Net as well",
    "train_inpainting": "gives the U-Net channels that the unroll does not have: train without it",
    "masked_loss": "has no adversarial counterpart yet: train without it",
    "alpha_mask": "has no adversarial counterpart yet: train without it",
    "torch_compile": "has not been tested with the unroll yet: train without it",
}
"""Host options that are refused, and why."""

SD_TRAINING_STEPS = 1000


def check_host_options(args: argparse.Namespace, config: ADTConfig) -> Family:
    """The family of the running trainer, if every option can be served.

    Raises:
        ConfigError: the first thing that cannot.
    """
    family = find_family(Path(sys.argv[0]).name)
    for name, reason in REFUSED.items():
        if getattr(args, name, False):
            raise ConfigError(f"--{name} cannot be combined with --adt, because it {reason}, or remove --adt.")
    _check_output(args)
    _check_learning_rate(args)
    _check_grid(args, config, family)
    _check_warmup(args, config)
    if getattr(args, "resume", None):
        logger.warning("--resume does not restore the discriminator yet: it starts anew, with its warm-up.")
    return family


def find_family(script: str) -> Family:
    """The family that a trainer's file name stands for.

    Raises:
        ConfigError: a trainer of the host that the plugin does not serve yet.
    """
    served = {name: family for family in FAMILIES for name in family.scripts}
    if script not in served:
        raise ConfigError(
            f"--adt does not work with {script} yet, only with {', '.join(served)}: remove --adt to train with it."
        )
    return served[script]


def _check_output(args: argparse.Namespace) -> None:
    if not getattr(args, "output_dir", None):
        raise ConfigError("--adt writes its rows and pictures beside the trained file: set --output_dir.")


def _check_learning_rate(args: argparse.Namespace) -> None:
    """The turn's gradient reaches the denoiser alone, so a denoiser that stands still makes it pointless."""
    unet_lr = getattr(args, "unet_lr", None)
    if unet_lr == 0 or (unet_lr is None and args.learning_rate == 0):
        flag = "--learning_rate" if unet_lr is None else "--unet_lr"
        raise ConfigError(f"{flag} 0 leaves --adt nothing to train: raise it, or remove --adt.")


def _check_grid(args: argparse.Namespace, config: ADTConfig, family: Family) -> None:
    """The sampler on a schedule of the right kind, as the run will build it on the host's own."""
    alphas_cumprod = torch.linspace(0.999, 0.0 if args.zero_terminal_snr else 0.005, SD_TRAINING_STEPS)
    scheduler = sampling.build_scheduler(config.sampler, alphas_cumprod, family.prediction_type(args), config.spacing)
    sampling.check_grid(scheduler, config.steps)
    start_range(config)


def _check_warmup(args: argparse.Namespace, config: ADTConfig) -> None:
    if config.weight == 0 or getattr(args, "max_train_epochs", None):
        return  # the number of steps is known only when the data are
    turns = args.max_train_steps * args.gradient_accumulation_steps // config.every
    if turns <= config.warmup:
        run = f"this run (--max_train_steps {args.max_train_steps}, --adt_every {config.every})"
        raise ConfigError(
            f"--adt_warmup {config.warmup} leaves nothing of the {turns} turns of {run}: "
            "lower it to about a tenth of the turns, or train longer."
        )
