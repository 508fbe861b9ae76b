"""`python -m benchmarks.small_sd`: a LoRA by the real `train_network.py` on the small Stable Diffusion, plain and with `--adt`.

The base knows digits in one style; the LoRA learns another. Plain training has as many steps as cost what the run with `--adt`
costs. Resumable; scored on held-out digits.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.stopwatch import Stopwatch
from adt_plugin.demo.cli import positive
from adt_plugin.demo.data import CLASSES, load_splits
from adt_plugin.demo.evaluate import CERTAIN
from adt_plugin.demo.metrics import frechet_distance, kernel_distance, precision_recall
from benchmarks import DOCUMENTS
from benchmarks.beds.pictures import CAPTIONS
from benchmarks.beds.small_sd import ASSETS, Denoiser, decoded, encoded, load_network, load_vae, rendered, sample
from benchmarks.store import CellStore
from tinyhost.models import HostModel
from tinyhost.run import find_host, run_host

STYLE, IMAGES = "paper", 400
SAMPLES, STEPS, GUIDANCE = 500, (5, 10, 20), (1.0, 3.0)
COST = 1.45
"""A run with `--adt` costs so many plain ones (docs/cost.md): plain training gets as many steps more."""

LORA: dict[str, object] = {
    "--network_dim": 16,
    "--network_alpha": 16,
    "--learning_rate": "1e-3",
    "--lr_scheduler": "cosine",
    "--train_batch_size": 16,
    "--vae_batch_size": 16,
}
FLAGS = ("--network_train_unet_only", "--cache_latents")


@dataclass(frozen=True)
class Recipe:
    """One way to train the LoRA.

    Attributes:
        steps: optimizer steps.
        adt: further options of the command, beginning with `--adt`; none for plain training. The backbone is not among them.
    """

    name: str
    steps: int
    adt: tuple[str, ...] = ()


def recipes(steps: int) -> tuple[Recipe, ...]:
    """Plain training and `--adt` with its defaults, for the same cost."""
    adt = ("--adt", "--adt_disc_width", "32", "--adt_pictures_every", "20")  # heads shrink with the backbone
    return Recipe("plain", round(COST * steps)), Recipe("ADT", steps, adt)


def write_training_images(folder: Path) -> Path:
    """Write the digits of the new style with their captions, as the host's DreamBooth folders want them."""
    images, labels = rendered(load_splits().train, STYLE, 1, seed=105)
    target = folder / "1_digits"
    target.mkdir(parents=True)
    for i, (image, label) in enumerate(zip(images[:IMAGES], labels[:IMAGES].tolist(), strict=True)):
        save_image(image, target / f"{i:04d}.png")
        (target / f"{i:04d}.txt").write_text(CAPTIONS[label], encoding="utf-8")
    return folder


def train_lora(recipe: Recipe, seed: int, images: Path, host: Path, out: Path) -> float:
    """Run the host; return its wall time in seconds.

    Raises AssertionError with the end of its log where it fails.
    """
    model = HostModel(ASSETS / "model", ASSETS / "tokenizers", "networks.lora", "sd")
    options = [str(part) for item in LORA.items() for part in item]
    options += [*FLAGS, "--max_train_steps", str(recipe.steps), "--seed", str(seed), *recipe.adt]
    options += ["--adt_backbone", str(ASSETS / "dinov2")] if recipe.adt else []
    watch = Stopwatch()
    began = watch.now()
    run_host("train_network.py", *options, host_dir=host, model=model, images=images, output_dir=out, timeout=7200).check()
    return watch.now() - began


def load_denoiser() -> Denoiser:
    """The trained base: UNet and text encoder, frozen."""
    network = Denoiser()
    model = ASSETS / "model"
    network.unet = type(network.unet).from_pretrained(model / "unet", torch_dtype=torch.float32)
    network.text = type(network.text).from_pretrained(model / "text_encoder", torch_dtype=torch.float32)
    return network.requires_grad_(False).eval()


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


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: held-out digits of the new style, as the VAE decodes them."""

    features: Tensor
    noise: Tensor
    asked: Tensor


@cache
def reference() -> Reference:
    """Render the held-out split once."""
    vae, metric = load_vae(), load_network("metric")
    real, _ = rendered(load_splits().heldout, STYLE, 1, seed=107)
    with torch.no_grad():
        features = metric.features(decoded(vae, encoded(vae, real)))
    noise = torch.randn((SAMPLES, 4, 8, 8), generator=torch.Generator().manual_seed(108))
    return Reference(features, noise, torch.arange(SAMPLES) % CLASSES)


@torch.no_grad()
def score(network: Denoiser, vae: Any, pictures: Path | None = None) -> dict[str, dict[str, float]]:
    """Return the figures by guidance and number of sampler steps, such as `3 @ 10`."""
    found, metric, judge = {}, load_network("metric"), load_network("judge")
    ref = reference()
    for guidance in GUIDANCE:
        for steps in STEPS:
            drawn = decoded(vae, sample(network, ref.noise, ref.asked, steps, guidance))
            features = metric.features(drawn)
            chance = judge(drawn).softmax(1)[torch.arange(SAMPLES), ref.asked]
            precision, recall = precision_recall(ref.features[:SAMPLES], features)
            found[f"{guidance:g} @ {steps}"] = {
                "fd": frechet_distance(ref.features, features),
                "kid": kernel_distance(ref.features, features),
                "precision": precision,
                "recall": recall,
                "well_formed": float((chance >= CERTAIN).float().mean()),
            }
            if pictures is not None:
                save_grid(drawn[:40], pictures.with_name(f"{pictures.name}-guidance{guidance:g}-steps{steps}.png"))
    return found


def save_grid(images: Tensor, path: Path, columns: int = 10) -> None:
    """Save images `(N, 3, H, W)` in [-1, 1] in rows of `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.cat([torch.cat(list(row), dim=2) for row in images.split(columns)], dim=1), path)


def save_image(image: Tensor, path: Path) -> None:
    """Save an image `(3, H, W)` in [-1, 1]."""
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def measure(recipe: Recipe, seed: int, host: Path, pictures: Path) -> dict[str, Any]:
    """Train one LoRA and score it, as JSON values."""
    with tempfile.TemporaryDirectory() as folder:
        images, out = write_training_images(Path(folder) / "images"), Path(folder) / "out"
        seconds = train_lora(recipe, seed, images, host, out)
        network = load_denoiser()
        merge_lora(network.unet, out / "tiny.safetensors")
        for picture in out.glob("*-adt*.png"):
            shutil.copy(picture, pictures / f"{recipe.name}-{seed}-{picture.name}")
    return {"seconds": round(seconds), "scores": score(network, load_vae(), pictures / f"{recipe.name}-{seed}")}


def run(steps: int, seeds: int, host: Path, out: Path, pictures: Path) -> dict[str, Any]:
    """Measure what the store does not hold: the base, and every recipe with every seed."""
    store = CellStore(out / "small_sd.json", "LoRA, new style")
    pictures.mkdir(parents=True, exist_ok=True)
    settings = (sorted(LORA.items()), FLAGS, STYLE, IMAGES, SAMPLES, STEPS, GUIDANCE, host.name)
    base = lambda: {"seconds": 0, "scores": score(load_denoiser(), load_vae(), pictures / "base")}  # noqa: E731
    found = {"base": store.get_or_run("base", (SAMPLES, STEPS, GUIDANCE, STYLE), base)[0]}
    for seed in range(1, seeds + 1):
        for recipe in recipes(steps):
            label = f"{recipe.name}, {recipe.steps} steps, seed {seed}"
            cell = lambda recipe=recipe, seed=seed: measure(recipe, seed, host, pictures)  # noqa: E731
            defaults = ADTConfig() if recipe.adt else None
            found[label] = store.get_or_run(label, (settings, recipe, defaults, seed), cell)[0]
            print(
                label,
                found[label]["seconds"],
                "s",
                {k: round(v["fd"], 2) for k, v in found[label]["scores"].items()},
                flush=True,
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's.

    Raises SystemExit where no host is found.
    """
    parser = argparse.ArgumentParser("python -m benchmarks.small_sd", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=positive, default=800, help="optimizer steps of the run with --adt (default: 800)")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--host", type=Path, help="sd-scripts' folder (default: the one that the tests use)")
    parser.add_argument("--out", type=Path, default=DOCUMENTS, help="folder of small_sd.json (default: docs/benchmarks)")
    parser.add_argument("--pictures", type=Path, default=Path("small_sd_pictures"), help="folder of pictures")
    given = parser.parse_args(argv)
    host = given.host or find_host()
    if host is None:
        raise SystemExit("no sd-scripts found: give its folder by --host")
    torch.set_num_threads(1)
    run(given.steps, given.seeds, host, given.out, given.pictures)


if __name__ == "__main__":
    main()
