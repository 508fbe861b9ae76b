"""What the experiment starts from: the pretrained denoiser, the metric's classifier and the discriminator's backbone.

Trained once per recipe and kept in a cache folder, so that the second demo starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError  # type: ignore[attr-defined]
from safetensors.torch import load_file, save
from torch import Tensor, nn

from adt_plugin.core.run.files import write_atomically
from adt_plugin.demo.data import Digits, batches, degrade, encode, warp
from adt_plugin.demo.diffusion import diffusion_loss
from adt_plugin.demo.models import Classifier, RotationNet, UNet, seeded

Progress = Callable[[float], object]
"""Called with the work done since the last call, in steps of the denoiser's training."""

Fit = Callable[[Any, Tensor, Tensor, torch.Generator], Tensor]
"""`(network, images, labels, generator) -> loss`"""

PRETRAINING_LR = 1e-3
FORMAT = 1  # of the cached files; raised whenever a network or its training changes


@dataclass(frozen=True)
class Recipe:
    """How long each network is trained; part of the cache's key.

    The denoiser learns warped, blurred and dimmed digits for `degraded_steps`, then clean ones for `clean_steps`: a
    converged base, as a fine-tune meets it.
    """

    degraded_steps: int = 1500
    clean_steps: int = 3000
    classifier_steps: int = 1600
    backbone_steps: int = 800
    batch_size: int = 32
    seed: int = 0

    @property
    def key(self) -> str:
        """Names the cached files."""
        text = json.dumps([FORMAT, asdict(self)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def work(self) -> float:
        """What training from an empty cache reports to `Progress` in all."""
        denoiser = self.degraded_steps + self.clean_steps
        return denoiser + CLASSIFIER_COST * self.classifier_steps + BACKBONE_COST * self.backbone_steps


CLASSIFIER_COST, BACKBONE_COST = 0.2, 0.5  # of one training step, in steps of the denoiser; for the progress bar only


@dataclass(frozen=True)
class Base:
    """The trained networks, frozen and in evaluation mode: a fine-tune copies `unet`."""

    unet: UNet
    classifier: Classifier
    backbone: RotationNet


def default_cache() -> Path:
    """Return the platform's folder for files that can be made again; `ADT_DEMO_CACHE` comes first."""
    if chosen := os.environ.get("ADT_DEMO_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "adt_plugin" / "demo"


def load_base(train: Digits, recipe: Recipe, cache: Path, progress: Progress = lambda work: None) -> Base:
    """Load the networks of a recipe, frozen, from the cache, or train them on `train` alone."""
    with seeded(recipe.seed):
        unet, classifier, backbone = UNet(), Classifier(), RotationNet()

    def ready(name: str, network: nn.Module, fit: Fit, steps: int, cost: float) -> None:
        path = cache / f"{name}-{recipe.key}.safetensors"
        if _restored(network, path):
            progress(cost * steps)
        else:
            stream = batches(train, recipe.batch_size, torch.Generator().manual_seed(recipe.seed))
            _train(network, fit, islice(stream, steps), steps, recipe.seed, lambda: progress(cost))
            write_atomically(path, save(network.state_dict()))
        network.requires_grad_(False).eval()

    ready("degraded", unet, _degraded_loss, recipe.degraded_steps, 1.0)
    unet.requires_grad_(True).train()
    ready("unet", unet, _clean_loss, recipe.clean_steps, 1.0)
    ready("classifier", classifier, _class_loss, recipe.classifier_steps, CLASSIFIER_COST)
    ready("backbone", backbone, _rotation_loss, recipe.backbone_steps, BACKBONE_COST)
    return Base(unet, classifier, backbone)


def _train(
    network: nn.Module, fit: Fit, stream: Iterator[tuple[Tensor, Tensor]], steps: int, seed: int, tick: Callable[[], object]
) -> None:
    """Train with AdamW at 1e-3, falling linearly to zero over the second half, gradient norm clipped to 1."""
    optimizer, generator = adamw(network, PRETRAINING_LR), torch.Generator().manual_seed(seed + 1)
    for step, (images, labels) in enumerate(stream):
        set_learning_rate(optimizer, PRETRAINING_LR * decay(step / steps))
        fit(network, images, labels, generator).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick()


def adamw(network: nn.Module, lr: float) -> torch.optim.AdamW:
    """Build AdamW with betas (0.9, 0.99); PyTorch's fused kernel, which CPUs have from 2.4 on, saves a fifth of a step here."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), fused=version >= (2, 4))


def decay(progress: float) -> float:
    """Return the learning-rate factor at `progress` in 0..1: 1 over the first half, then linearly to 0."""
    return min(1.0, 2.0 * (1.0 - progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _degraded_loss(unet: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    return diffusion_loss(unet, encode(degrade(images, generator)), labels, generator)


def _clean_loss(unet: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    return diffusion_loss(unet, encode(images), labels, generator)


def _class_loss(classifier: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    return F.cross_entropy(classifier(_augmented(images, generator)), labels)


def _rotation_loss(backbone: RotationNet, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    turns = torch.randint(4, (len(images),), generator=generator)
    rotated = torch.stack(
        [image.rot90(int(k), dims=(1, 2)) for image, k in zip(_augmented(images, generator), turns, strict=True)]
    )
    return F.cross_entropy(backbone.rotation_logits(rotated), turns)


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Warp images slightly: 800 digits are few."""
    return warp(images, generator, angle=10, stretch=0.1, shift=0.1)


def _restored(network: nn.Module, path: Path) -> bool:
    """Return whether the network's weights were found; a file that cannot be read counts as missing and is made again."""
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError):
        return False
    return True
