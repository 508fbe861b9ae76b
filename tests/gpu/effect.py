"""Does ADT help at a size that a CPU cannot run: digits in colour at 64 to 128 pixels, a U-Net of tens of millions of weights.

A class-conditional denoiser is trained with the diffusion loss; from there plain training and ADT go on for the same number of
optimizer steps, over the same batches. All three are sampled from the same noise and scored by a classifier that none of them
saw. The base lies below `folder`, is not trained twice, and goes on where it was interrupted.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.samplers import Sampler, build_sampler
from adt_plugin.core.discriminator import Discriminator, FrozenBackbone
from adt_plugin.core.run.files import replacement
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.demo.data import CLASSES, Digits, load_splits
from adt_plugin.demo.diffusion import alphas_cumprod
from adt_plugin.demo.metrics import frechet_distance
from benchmarks.beds.pictures import render

PIXELS = 2
"""Of the image to one latent: latents are the image's own pixels, two by two, so that no autoencoder stands between."""


SAVED_EVERY = 1000
"""Steps of the base's training: a card may go away before its end."""


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Attributes:
        side: of the images, in pixels.
        widths: of the U-Net's levels.
        base_steps, tune_steps, judge_steps: optimizer steps of the base, of what comes after it, and of the classifiers.
        batch: images in each.
        samples: that are scored.
        adt: options of the turn.
    """

    side: int
    widths: tuple[int, ...]
    base_steps: int
    tune_steps: int
    judge_steps: int
    batch: int
    samples: int
    adt: ADTConfig


FULL = Size(64, (128, 192, 256), 20_000, 2_000, 2_000, 64, 2_000, ADTConfig(decode_crop=0, pictures_every=0))
SMALLEST = Size(16, (8, 8), 2, 2, 2, 2, 4, ADTConfig(decode_crop=0, steps=2, warmup=1, every=1, disc_width=16))


class Features(nn.Module):
    """A classifier of the digits, whose three maps are the discriminator's backbone or whose last one is the metric."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        self.levels = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(sizes, sizes[1:], strict=False))
        self.last = nn.Linear(4 * width, CLASSES)
        self.channels = list(sizes[1:])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `(B, 3, H, W)` -> maps `(B, C_i, H / 2^i, W / 2^i)`."""
        maps = []
        for level in self.levels:
            images = F.silu(level(images))
            maps.append(images)
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """Features `(B, 4 width)`."""
        return self(images)[-1].mean((2, 3))


def latents_of(images: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` -> latents `(B, 12, H / 2, W / 2)`."""
    return F.pixel_unshuffle(images, PIXELS)


def decode(latents: Tensor) -> Tensor:
    """Latents -> images: the way back."""
    return F.pixel_shuffle(latents, PIXELS)


def unet(size: Size) -> nn.Module:
    """An untrained denoiser; attention on the lowest level."""
    from diffusers import UNet2DModel

    levels = len(size.widths)
    return UNet2DModel(
        sample_size=size.side // PIXELS,
        in_channels=3 * PIXELS**2,
        out_channels=3 * PIXELS**2,
        block_out_channels=size.widths,
        down_block_types=(*("DownBlock2D",) * (levels - 1), "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", *("UpBlock2D",) * (levels - 1)),
        norm_num_groups=8,
        num_class_embeds=CLASSES,
    )


def pictures(digits: Digits, size: Size, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Render digits in colour at the experiment's size: images `(N, 3, side, side)` in [-1, 1] and classes `(N,)`."""
    images = render(digits, "paper", torch.Generator().manual_seed(seed))
    images = F.interpolate(images, size=size.side, mode="bicubic", antialias=True).clamp(-1, 1)
    return images.to(device), digits.labels.to(device)


def batch_of(images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw images and their classes."""
    index = torch.randint(len(images), (count,), generator=generator).to(images.device)
    return images[index], labels[index]


def train_classifier(size: Size, images: Tensor, labels: Tensor, width: int, seed: int) -> Features:
    """Train one on the images' classes."""
    torch.manual_seed(seed)
    network, generator = Features(width).to(images.device), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(size.judge_steps):
        some, classes = batch_of(images, labels, size.batch, generator)
        F.cross_entropy(network.last(network.pooled(some)), classes).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval().requires_grad_(False)


class Loop:
    """The training loop that base, plain training and ADT share.

    Args:
        network: trained in place.
        turn: None trains with the diffusion loss alone.
        seed: of batches, noise and timesteps.
    """

    def __init__(self, network: nn.Module, turn: AdversarialTurn | None, seed: int, lr: float) -> None:
        self.network, self.turn, self.generator = network, turn, torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
        self.alphas = alphas_cumprod()

    def run(self, size: Size, images: Tensor, labels: Tensor, steps: int) -> float:
        """Take optimizer steps; returns their seconds."""
        began = time.monotonic()
        for step in range(steps):
            some, classes = batch_of(images, labels, size.batch, self.generator)
            self.diffusion(latents_of(some), classes)
            if self.turn is not None and self.turn.due(step):
                self.turn(lambda x, t, y=classes: self.network(x, t, y).sample, latents_of(some))
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - began

    def save(self, path: Path, done: int) -> None:
        """Write everything that the next step needs, and how many there were; whole or not at all."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"generator": self.generator.get_state(), "done": done}
        with replacement(path) as file:
            torch.save(tree_map_only(Tensor, lambda tensor: tensor.cpu(), state), file)

    def restore(self, path: Path) -> int:
        """Go on where `save` was; returns how many steps there were."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        return int(state["done"])

    def diffusion(self, clean: Tensor, classes: Tensor) -> None:
        """Put the gradient of the diffusion loss into the parameters."""
        timesteps = torch.randint(len(self.alphas), (len(clean),), generator=self.generator)
        noise = torch.randn(clean.shape, generator=self.generator).to(clean.device)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1).to(clean.device)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        prediction = self.network(noisy, timesteps.to(clean.device), classes).sample
        if self.turn is not None:
            self.turn.watch(prediction)
        F.mse_loss(prediction, noise).backward()


def adversarial_turn(size: Size, backbone: Features, seed: int, device: torch.device) -> AdversarialTurn:
    """The plugin's defaults on a backbone of the experiment's own."""
    config = ADTConfig(**asdict(size.adt) | {"seed": seed})
    frozen = FrozenBackbone(copy.deepcopy(backbone), backbone.channels, 8, size.side)
    discriminator = Discriminator.from_config(config, frozen).to(device)
    return AdversarialTurn(config, sampler=sampler(), decode=decode, discriminator=discriminator, latent_pixels=PIXELS)


def sampler() -> Sampler:
    """DDIM on Stable Diffusion's noise schedule."""
    return build_sampler("ddim", alphas_cumprod(), "epsilon", "leading")


@torch.no_grad()
def sampled(network: nn.Module, size: Size, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images from pure noise, the same for every network, and the classes that were asked for."""
    walker = sampler()
    walker.prepare(steps, steps)
    noise = torch.randn(size.samples, 3 * PIXELS**2, *(size.side // PIXELS,) * 2, generator=torch.Generator().manual_seed(1))
    labels, parts = (torch.arange(size.samples) % CLASSES).to(device), []
    for latents, classes in zip(noise.to(device).split(250), labels.split(250), strict=True):
        for timestep in walker.timesteps:
            output = network(latents, timestep.to(device), classes).sample
            latents = walker.step(output, timestep, latents)
        parts.append(decode(latents).clamp(-1, 1))
    return torch.cat(parts), labels


def scores(network: nn.Module, size: Size, metric: Features, real: Tensor, device: torch.device) -> dict[str, float]:
    """Fréchet distance in the metric's features, and the share of images that it takes for the asked class with certainty."""
    found = {}
    features = torch.cat([metric.pooled(part) for part in real.split(250)]).cpu()
    for steps in (5, 10, 20):
        images, labels = sampled(network.eval(), size, steps, device)
        mine = torch.cat([metric.pooled(part) for part in images.split(250)])
        sure = metric.last(mine).softmax(1)[torch.arange(len(mine), device=device), labels] >= 0.8
        found |= {f"fd_{steps}": frechet_distance(features, mine.cpu()), f"well_formed_{steps}": float(sure.float().mean())}
    return found


def train_base(loop: Loop, size: Size, images: Tensor, labels: Tensor, path: Path) -> float:
    """Train the base, from where an interrupted call has left it; returns the seconds of this one."""
    done, seconds = loop.restore(path) if path.exists() else 0, 0.0
    while done < size.base_steps:
        steps = min(SAVED_EVERY, size.base_steps - done)
        seconds += loop.run(size, images, labels, steps)
        done += steps
        loop.save(path, done)
    return seconds


def compare(size: Size, device_name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train base, plain and ADT with one seed and score all three against images that none of them saw."""
    device, splits = torch.device(device_name), load_splits()
    images, labels = pictures(splits.train, size, 10, device)
    real, classes = pictures(splits.heldout, size, 11, device)
    metric = train_classifier(size, real, classes, 32, seed=100)
    backbone = train_classifier(size, images, labels, 24, seed=200)
    torch.manual_seed(seed)
    base = unet(size).to(device)
    took = {"base": train_base(Loop(base, None, seed, 2e-4), size, images, labels, folder / f"base-{seed}.pt")}
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in base.parameters()),
        "base": scores(base, size, metric, real, device),
    }
    for name in ("plain", "adt"):
        network = copy.deepcopy(base)
        turn = adversarial_turn(size, backbone, seed, device) if name == "adt" else None
        took[name] = Loop(network, turn, seed + 50, 1e-4).run(size, images, labels, size.tune_steps)
        found[name] = scores(network, size, metric, real, device)
    return found | {"seconds": took}
