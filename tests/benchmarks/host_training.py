"""Training on the small Stable Diffusion by the host's real scripts: training data, the run, scores of what it saved.

A LoRA by `train_network.py`, or all weights of the UNet by `train_db.py`.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from adt_plugin.core.run.files import tensor_shapes
from adt_plugin.demo.data import CLASSES, load_splits
from adt_plugin.demo.evaluate import CERTAIN
from adt_plugin.demo.metrics import frechet_distance, kernel_distance, nearest_distance, precision_recall
from benchmarks.beds.pictures import CAPTIONS
from benchmarks.beds.small_sd import ASSETS, Denoiser, Sampler, decoded, encoded, load_network, load_vae, rendered, sample
from benchmarks.floor import floor
from tinyhost.models import HostModel
from tinyhost.run import NO_HOST, OUTPUT_NAME, find_host, host_arguments, host_environment, run_host

STYLE, IMAGES = "paper", 2000
SHAPE = (3, 64, 64)
PLATEAU = ASSETS / "lora.safetensors"
SCRIPT, FULL_SCRIPT = "train_network.py", "train_db.py"
MODEL = HostModel(ASSETS / "model", ASSETS / "tokenizers", "networks.lora", "sd")
POINTS = ((1.0, 5), (1.0, 10), (2.0, 10), (3.0, 5), (3.0, 10), (7.0, 10))
"""Guidance and sampler steps that every LoRA is scored at."""

BATCH = 16
"""Images in a forward pass, where a recipe has no other number."""
OPTIONS: dict[str, object] = {
    "--network_dim": 16,
    "--network_alpha": 16,
    "--lr_scheduler": "cosine",
    "--train_batch_size": BATCH,
    "--vae_batch_size": 16,
    "--save_precision": "fp16",
}
FLAGS = ("--network_train_unet_only", "--cache_latents")
FULL = ("--cache_latents", "--stop_text_encoder_training", "-1", "--save_model_as", "diffusers_safetensors")
"""In place of `FLAGS` and of the network's options."""


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        steps: optimizer steps.
        lr: learning rate, as the command line has it.
        adt: further options of the command, beginning with `--adt`; none for plain training. The backbone is not among them.
        full: train all weights of the UNet instead of a LoRA.
        batch: images in a forward pass.
        accumulated: forward passes an optimizer step.
    """

    name: str
    steps: int
    lr: str
    adt: tuple[str, ...] = ()
    full: bool = False
    batch: int = BATCH
    accumulated: int = 1

    @property
    def script(self) -> str:
        """The host's script that trains so."""
        return FULL_SCRIPT if self.full else SCRIPT


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: digits of the new style that no training saw, as the VAE decodes them."""

    images: Tensor
    features: Tensor
    train: Tensor


def add_host_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option for `host_folder`."""
    parser.add_argument("--host", type=Path, help="sd-scripts' folder (default: the one that the tests use)")


def host_folder(given: Path | None) -> Path:
    """Return the host's folder that is given, or the one that is found. Raises SystemExit where there is none."""
    found = given or find_host()
    if found is None:
        raise SystemExit(f"{NO_HOST}, or give its folder by --host")
    return found.resolve()


def write_training_images(folder: Path) -> Path:
    """Write the digits of the new style with their captions, as the host's DreamBooth folders want them."""
    images, labels = rendered(load_splits().train, STYLE, 1, seed=105)
    target = folder / "1_digits"
    target.mkdir(parents=True)
    for i, (image, label) in enumerate(zip(images[:IMAGES], labels[:IMAGES].tolist(), strict=True)):
        save_image(image, target / f"{i:04d}.png")
        (target / f"{i:04d}.txt").write_text(CAPTIONS[label], encoding="utf-8")
    return folder


def train(recipe: Recipe, seed: int, begin: Path | None, images: Path, host: Path, out: Path) -> float:
    """Train with the host; return the processor time in seconds, the start-up included.

    Args:
        begin: a LoRA to go on from; None begins one. Full fine-tuning begins at the base.

    Raises AssertionError with the end of the host's log where it fails.
    """
    options = host_options(recipe, seed, begin)
    before = processor_time_of_children()
    run_host(recipe.script, *options, host_dir=host, model=MODEL, images=images, output_dir=out, timeout=7200).check()
    return processor_time_of_children() - before


def host_options(recipe: Recipe, seed: int, begin: Path | None) -> list[str]:
    """Return what stands on the host's command line beside the kit's own options."""
    given = OPTIONS | {"--train_batch_size": recipe.batch}
    shared = {name: value for name, value in given.items() if not (recipe.full and name.startswith("--network"))}
    options = [str(part) for item in shared.items() for part in item]
    options += [
        *(FULL if recipe.full else FLAGS),
        "--learning_rate",
        recipe.lr,
        "--max_train_steps",
        str(recipe.steps),
        "--seed",
        str(seed),
    ]
    options += ["--gradient_accumulation_steps", str(recipe.accumulated)] if recipe.accumulated > 1 else []
    options += ["--network_weights", str(begin)] if begin else []
    return options + ([*recipe.adt, "--adt_backbone", str(ASSETS / "dinov2")] if recipe.adt else [])


def command_line(recipe: Recipe, seed: int, begin: Path | None, images: Path, out: Path) -> str:
    """Return the command that trains so, to be pasted into a shell in the host's folder."""
    own = host_environment(MODEL.family, out, hub_cache=MODEL.tokenizers)
    variables = [f"{name}={shlex.quote(value)}" for name, value in own.items() if os.environ.get(name) != value]
    words = [recipe.script, *host_arguments(recipe.script, MODEL, images, out), *host_options(recipe, seed, begin)]
    return " ".join([*variables, "python", *map(shlex.quote, words)])


def processor_time_of_children() -> float:
    """Seconds that ended processes of this one have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load_denoiser(tuned: Path | None = None) -> Denoiser:
    """The trained base, UNet and text encoder, with a LoRA where one is given, or with a UNet's weights; frozen."""
    network = Denoiser()
    model = ASSETS / "model"
    network.unet = type(network.unet).from_pretrained(model / "unet", torch_dtype=torch.float32)
    network.text = type(network.text).from_pretrained(model / "text_encoder", torch_dtype=torch.float32)
    network.requires_grad_(False).eval()
    if tuned is not None:
        if any(name.startswith("lora_") for name in tensor_shapes(tuned)):
            merge_lora(network.unet, tuned)
        else:
            network.unet.load_state_dict(load_file(tuned))
    return network


@torch.no_grad()
def merge_lora(unet: nn.Module, file: Path) -> None:
    """Add a LoRA of the host's to the weights it was trained for.

    Raises ValueError where a part of it fits nothing.
    """
    parts = load_file(file)
    left = {name.partition(".")[0] for name in parts}
    for name, module in unet.named_modules():
        key = "lora_unet_" + name.replace(".", "_")
        if key in left:
            up, down = (parts[f"{key}.lora_{side}.weight"].float() for side in ("up", "down"))
            scale = float(parts[f"{key}.alpha"]) / len(down)
            module.weight += scale * (up.flatten(1) @ down.flatten(1)).view_as(module.weight)
            left.remove(key)
    if left:
        raise ValueError(f"{file.name} has parts for modules that the UNet does not have: {sorted(left)[:3]}")


frozen_network = cache(load_network)
"""The metric or the judge, read once."""


@cache
def reference(split: str) -> Reference:
    """Render a split once, and the training images.

    Args:
        split: `validation` or `heldout`.
    """
    vae, metric, splits = load_vae(), frozen_network("metric"), load_splits()
    real, _ = rendered(getattr(splits, split), STYLE, 1, seed=107)
    train, _ = rendered(splits.train, STYLE, 1, seed=105)
    with torch.no_grad():
        seen = decoded(vae, encoded(vae, real))
        return Reference(seen, metric.features(seen), decoded(vae, encoded(vae, train[:IMAGES])).flatten(1))


def point_name(guidance: float, steps: int) -> str:
    """How scores are called, such as `3 @ 10`."""
    return f"{guidance:g} @ {steps}"


@torch.no_grad()
def score(
    network: nn.Module,
    split: str,
    noise_seed: int,
    samples: int,
    points: Sequence[tuple[float, int]],
    pictures: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Return the figures of samples at every point, by `point_name`.

    Args:
        noise_seed: of the noise, one and the same for whoever is compared.
        pictures: where to save the first forty samples of each point; None saves none.
    """
    found = {}
    for guidance, steps in points:
        drawn, asked = images_of(network, noise_seed, samples, guidance, steps)
        found[point_name(guidance, steps)] = figures(drawn, asked, split)
        if pictures is not None:
            save_grid(drawn[:40], pictures.with_name(f"{pictures.name}-guidance{guidance:g}-steps{steps}.png"))
    return found


@torch.no_grad()
def images_of(
    network: nn.Module, noise_seed: int, samples: int, guidance: float, steps: int, sampler: Sampler | None = None
) -> tuple[Tensor, Tensor]:
    """Sample `(N, 3, 64, 64)` in [-1, 1], by DDIM unless told otherwise, the ten classes in turn.

    Returns the images and their classes `(N,)`.
    """
    noise = torch.randn((samples, 4, 8, 8), generator=torch.Generator().manual_seed(noise_seed))
    asked = classes(samples)
    return decoded(load_vae(), sample(network, noise, asked, steps, guidance, sampler=sampler)), asked


@torch.no_grad()
def figures(drawn: Tensor, asked: Tensor, split: str) -> dict[str, float]:
    """Return what images `(N, 3, 64, 64)` in [-1, 1] score against a split, where `asked` holds their classes `(N,)`."""
    ref, features = reference(split), frozen_network("metric").features(drawn)
    chance = frozen_network("judge")(drawn).softmax(1)[torch.arange(len(drawn)), asked]
    count = min(len(ref.features), len(features))
    precision, recall = precision_recall(ref.features[:count], features[:count])
    return {
        "fd": frechet_distance(ref.features, features),
        "kid": kernel_distance(ref.features, features),
        "pixel_fd": frechet_distance(small(ref.images), small(drawn)),
        "precision": precision,
        "recall": recall,
        "well_formed": float((chance >= CERTAIN).float().mean()),
        "novelty": nearest_distance(drawn.flatten(1), ref.train) / nearest_distance(ref.images.flatten(1), ref.train),
    }


def training_figures(split: str, samples: int) -> dict[str, float]:
    """Return what the images that the LoRA learnt from score against a split, as many of each class as `samples` have."""
    seen, labels = reference(split).train.view(-1, *SHAPE), load_splits().train.labels[:IMAGES]
    return floor(labels, classes(samples), lambda indices: figures(seen[indices], labels[indices], split))


def classes(samples: int) -> Tensor:
    """Return the classes that samples are asked for `(N,)`: the ten in turn."""
    return torch.arange(samples) % CLASSES


def small(images: Tensor) -> Tensor:
    """Pixels of images shrunk to 16x16: `(N, 768)`, few enough for a covariance of some hundred images."""
    return nn.functional.avg_pool2d(images, 4).flatten(1)


def save_grid(images: Tensor, path: Path, columns: int = 10) -> None:
    """Save images `(N, 3, H, W)` in [-1, 1] in rows of `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.cat([torch.cat(list(row), dim=2) for row in images.split(columns)], dim=1), path)


def save_image(image: Tensor, path: Path) -> None:
    """Save an image `(3, H, W)` in [-1, 1]."""
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def trained(recipe: Recipe, seed: int, begin: Path | None, host: Path, keep: Path) -> float:
    """Train, and keep a LoRA or a UNet's weights in the file `keep`, progress pictures beside it.

    Returns the processor time in seconds.
    """
    keep.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        images, out = write_training_images(Path(folder) / "images"), Path(folder) / "out"
        seconds = train(recipe, seed, begin, images, host, out)
        for made in (*out.glob("*-adt*.png"), *out.glob("*-adt.jsonl")):
            shutil.copy(made, keep.with_name(f"{keep.stem}-{made.name}"))
        unet = out / OUTPUT_NAME / "unet" / SAFETENSORS_WEIGHTS_NAME
        shutil.copy(unet if recipe.full else out / f"{OUTPUT_NAME}.safetensors", keep)
    return seconds


def scored(file: Path, split: str, noise_seed: int, samples: int, pictures: Path | None = None) -> dict[str, Any]:
    """Score a LoRA, or a UNet's weights, at all points."""
    return score(load_denoiser(file), split, noise_seed, samples, POINTS, pictures)
