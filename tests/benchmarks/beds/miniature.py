"""`python -m benchmarks.beds.miniature NAME`: trains a network of the miniature; its weights ship with the package.

    metric, judge     supervised classifiers, on the metric's share of the digits
    backbone          self-supervised by rotations, on the backbone's share
    unet0, unet1      two bases, on the training share, to their plateau

Every training goes on where it was interrupted. `--write` puts the weights into the package, in half precision, and their
digests beside them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adt_plugin.demo.data import Digits, encode, load_splits
from adt_plugin.demo.diffusion import diffusion_pair, evaluation_noise, sample
from adt_plugin.demo.metrics import frechet_distance
from adt_plugin.demo.models import Classifier, Judge, RotationNet, UNet, seeded
from adt_plugin.demo.weights import WEIGHTS, load_weights, write_weights
from benchmarks.beds.pictures import warp
from benchmarks.beds.training import Training, train, what_to_train

CLASSIFIER = Training(steps=3000, weight_decay=0.01)
BACKBONE = Training(steps=4000, weight_decay=0.01)
BASE = Training(steps=26_000, lr=1e-3, lr_end=5e-5, fall=2 / 3, average=0.9995)
BATCH_SIZE, CLASSIFIER_BATCH = 64, 64
VALIDATION_SAMPLES, VALIDATION_STEPS = 1000, (5, 10, 20)


def draw(digits: Digits, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` images and their classes, with replacement."""
    index = torch.randint(len(digits), (count,), generator=generator)
    return digits.images[index], digits.labels[index]


def warped(digits: Digits, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw slightly warped images and their classes: a share of a few hundred is little."""
    images, labels = draw(digits, count, generator)
    return warp(images, generator, angle=12, stretch=0.12, shift=0.1), labels


def train_classifier(network: nn.Module, name: str, seed: int, work: Path) -> nn.Module:
    """Train the metric's network or the judge; its accuracy is taken on the validation split."""
    splits = load_splits()

    def loss(generator: torch.Generator) -> Tensor:
        images, labels = warped(splits.metric, CLASSIFIER_BATCH, generator)
        images = images + 0.05 * torch.randn(images.shape, generator=generator)
        return F.cross_entropy(network(images), labels, label_smoothing=0.05)

    def accuracy(found: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            right = found(splits.validation.images).argmax(1) == splits.validation.labels
        return {"accuracy": right.float().mean().item()}

    return train(network, loss, CLASSIFIER, work / f"{name}.pt", seed, accuracy)


def train_backbone(network: RotationNet, name: str, seed: int, work: Path) -> nn.Module:
    """Train the discriminator's backbone to tell by how many quarter turns an image was rotated."""
    splits = load_splits()

    def rotated(images: Tensor, turns: Tensor) -> Tensor:
        return torch.stack([image.rot90(int(k), dims=(1, 2)) for image, k in zip(images, turns, strict=True)])

    def loss(generator: torch.Generator) -> Tensor:
        images, _ = warped(splits.backbone, CLASSIFIER_BATCH, generator)
        turns = torch.randint(4, (len(images),), generator=generator)
        return F.cross_entropy(network.rotation_logits(rotated(images, turns)), turns)

    def accuracy(found: nn.Module) -> dict[str, float]:
        turns = torch.arange(len(splits.validation)) % 4
        with torch.no_grad():
            logits = found.rotation_logits(rotated(splits.validation.images, turns))  # type: ignore[operator]
        return {"accuracy": (logits.argmax(1) == turns).float().mean().item()}

    return train(network, loss, BACKBONE, work / f"{name}.pt", seed, accuracy)


def train_base(unet: UNet, name: str, seed: int, work: Path) -> nn.Module:
    """Train a denoiser to its plateau, in bfloat16 where that is faster; the log has Fréchet distances on validation."""
    splits, metric = load_splits(), load_weights("metric", Classifier())
    noise, labels = evaluation_noise(VALIDATION_SAMPLES, seed=100)

    def loss(generator: torch.Generator) -> Tensor:
        images, classes = draw(splits.train, BATCH_SIZE, generator)
        noisy, timesteps, target = diffusion_pair(encode(images), generator)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = unet(noisy, timesteps, classes)
        return F.mse_loss(prediction.float(), target)

    @torch.no_grad()
    def distances(found: nn.Module) -> dict[str, float]:
        real = metric.features(splits.validation.images)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = {count: sample(found, noise, labels, count) for count in VALIDATION_STEPS}
        return {f"fd@{n}": frechet_distance(real, metric.features(images.float())) for n, images in drawn.items()}

    return train(unet, loss, BASE, work / f"{name}.pt", seed, distances)


TRAININGS: dict[str, tuple[Callable[[], nn.Module], Callable[..., nn.Module], int]] = {
    "metric": (Classifier, train_classifier, 1),
    "judge": (Judge, train_classifier, 2),
    "backbone": (RotationNet, train_backbone, 3),
    "unet0": (UNet, train_base, 10),
    "unet1": (UNet, train_base, 11),
}
"""By name: the network, how it is trained, its seed."""


def main() -> None:
    """Train the networks that are named, and write what ships."""
    given = what_to_train("miniature", __doc__ or "", TRAININGS, "the package")
    for name in given.names:
        build, training, seed = TRAININGS[name]
        with seeded(seed):
            network = build()
        found = training(network, name, seed, given.work)
        if given.write:
            write_weights(name, found)
            shutil.copy(given.work / f"{name}.jsonl", WEIGHTS / f"{name}.jsonl")


if __name__ == "__main__":
    main()
