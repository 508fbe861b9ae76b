"""`python -m benchmarks.beds.small_sd NAME`: trains a Stable Diffusion 1.5 in miniature, in the host's file format.

    vae        64x64 pixels to 8x8x4 latents, on both styles
    base       denoiser and text encoder together, on the style `night`, to their plateau
    backbone   a small DINOv2, on both styles of the backbone's share
    metric     the metric's network, on both styles of the metric's share
    judge      says whether an image is a well-formed digit of the asked class, likewise

Every training goes on where it was interrupted. `--write` puts what is trained into `tests/assets/small_sd`.
"""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS / "tinyhost" / "site"))
__import__("sitecustomize").install(None)  # declares torchvision's operators where its extension is missing

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model  # noqa: E402

from adt_plugin.demo.data import CLASSES, Digits, load_splits  # noqa: E402
from adt_plugin.demo.diffusion import add_noise  # noqa: E402
from adt_plugin.demo.metrics import frechet_distance  # noqa: E402
from adt_plugin.demo.models import seeded  # noqa: E402
from adt_plugin.demo.weights import filled, halved  # noqa: E402
from benchmarks.beds.pictures import CAPTIONS, SIDE, STYLES, render  # noqa: E402
from benchmarks.beds.training import Training, train, what_to_train  # noqa: E402
from tinyhost import models, tokenizers  # noqa: E402
from tinyhost.families.sd import BLOCK_OUT_CHANNELS, CLIP_HIDDEN_SIZE, NORM_GROUPS  # noqa: E402
from tinyhost.models import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from tinyhost.text_encoders import clip_sizes, clip_text_model  # noqa: E402

ASSETS = TESTS / "assets" / "small_sd"
SCALE = 0.18215  # Stable Diffusion's factor between the VAE's latents and the denoiser's
TOKENS = 16  # of a caption, padding included
LATENT_NOISE = 0.03  # standard deviation of the VAE's posterior, in the denoiser's latents
UNCONDITIONAL = 0.1  # share of captions left empty
RENDERINGS = 4  # of every training digit, each with colours and a tilt of its own

VAE = Training(steps=1600, lr=3e-3, lr_end=2e-5, validate_every=250)
BASE = Training(steps=6000, lr=1.2e-3, lr_end=1e-4, fall=2 / 3, average=0.999, validate_every=500)
BACKBONE = Training(steps=4000, lr=2e-3, lr_end=2e-5, weight_decay=0.02, validate_every=500)
METRIC = Training(steps=1500, lr=2e-3, lr_end=2e-5, weight_decay=0.01, validate_every=500)


def rendered(digits: Digits, style: str, times: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `times` renderings of every digit `(N, 3, 64, 64)` in [-1, 1], and their classes `(N,)`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.cat([render(digits, style, generator) for _ in range(times)])
    return (images * 127.5).round() / 127.5, digits.labels.repeat(times)


def both_styles(digits: Digits, times: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the renderings in both styles, one after the other."""
    parts = [rendered(digits, style, times, seed + i) for i, style in enumerate(STYLES)]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def draw(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw `size` indices below `count`, with replacement."""
    return torch.randint(count, (size,), generator=generator)


# The autoencoder


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder of Stable Diffusion's structure."""
    channels = (16, 32, 48, 48)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIDE,
    )


def train_vae(work: Path) -> AutoencoderKL:
    """Train the autoencoder, then give its latents mean 0 and deviation 1 by way of its 1x1 convolutions."""
    splits = load_splits()
    images, _ = both_styles(splits.train, 1, seed=1)
    unseen, _ = both_styles(splits.validation, 1, seed=3)
    with seeded(20):
        vae = new_vae()

    def loss(generator: torch.Generator) -> Tensor:
        batch = images[draw(len(images), 8, generator)]
        mean = vae.encode(batch).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator)
        found = vae.decode(mean + LATENT_NOISE / SCALE * noise).sample
        return F.mse_loss(found, batch) + 0.1 * F.l1_loss(found, batch) + 1e-4 * (mean * SCALE).square().mean()

    def error(found: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"mse": F.mse_loss(found(unseen[::5]).sample, unseen[::5]).item()}

    trained = train(vae, loss, VAE, work / "vae.pt", 21, error)
    _standardize(trained, images[::5])
    return trained


@torch.no_grad()
def _standardize(vae: Any, images: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 in the denoiser's scale, and a narrow posterior."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in images.split(50)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    stretch = 1 / (std * SCALE)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.weight[:4] *= stretch[:, None, None, None]
    encode.bias[:4] = (encode.bias[:4] - mean) * stretch
    encode.weight[4:] = 0
    encode.bias[4:] = 2 * math.log(LATENT_NOISE / SCALE)
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight /= stretch[None, :, None, None]


def load_vae() -> AutoencoderKL:
    """The trained autoencoder, frozen."""
    return AutoencoderKL.from_pretrained(ASSETS / "model" / "vae", torch_dtype=torch.float32).requires_grad_(False).eval()


@torch.no_grad()
def encoded(vae: Any, images: Tensor) -> Tensor:
    """Return latents `(N, 4, 8, 8)`, the posterior's mean, in the denoiser's scale."""
    return torch.cat([vae.encode(batch).latent_dist.mean * SCALE for batch in images.split(50)])


@torch.no_grad()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Return images `(N, 3, 64, 64)` in [-1, 1] of latents in the denoiser's scale."""
    return torch.cat([vae.decode(batch / SCALE).sample.clamp(-1, 1) for batch in latents.split(50)])


# Denoiser and text encoder


class Denoiser(nn.Module):
    """Denoiser and text encoder as one network; class `CLASSES` is the empty caption."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=BLOCK_OUT_CHANNELS,
            norm_num_groups=NORM_GROUPS,
            cross_attention_dim=CLIP_HIDDEN_SIZE,
            attention_head_dim=2,
        )
        self.text = clip_text_model(clip_sizes(CLIP_HIDDEN_SIZE))
        tokens = tokenizer()([*CAPTIONS, ""], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        self.register_buffer("captions", tokens.input_ids, persistent=False)

    def forward(self, latents: Tensor, timesteps: Tensor, classes: Tensor) -> Tensor:
        """Return the predicted noise `(B, 4, 8, 8)`."""
        condition = self.text(self.captions)[0][classes]
        return self.unet(latents, timesteps, condition).sample


def tokenizer() -> Any:
    """CLIP's tokenizer for short captions."""
    found = tokenizers.clip_tokenizer()
    found.model_max_length = found.init_kwargs["model_max_length"] = TOKENS
    return found


Sampler = Any
"""A scheduler of diffusers'."""


@torch.no_grad()
def sample(
    denoiser: nn.Module,
    noise: Tensor,
    labels: Tensor,
    steps: int,
    guidance: float,
    chunk: int = 100,
    sampler: Sampler | None = None,
) -> Tensor:
    """Return latents `(N, 4, 8, 8)` sampled from white noise in `steps` steps, by diffusers' DDIM unless told otherwise."""
    scheduler, parts = models.scheduler() if sampler is None else sampler, []
    for x, y in zip(noise.split(chunk), labels.split(chunk), strict=True):
        scheduler.set_timesteps(steps)  # anew, since some keep earlier predictions
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            out = denoiser(scaled, t.expand(len(x)), y)
            if guidance != 1:
                out = torch.lerp(denoiser(scaled, t.expand(len(x)), torch.full_like(y, CLASSES)), out, guidance)
            x = scheduler.step(out, t, x).prev_sample
        parts.append(x)
    return torch.cat(parts)


def train_base(work: Path) -> Denoiser:
    """Train denoiser and text encoder to their plateau; the log has distances and accuracy on validation, guidance 3."""
    splits, vae = load_splits(), load_vae()
    images, labels = rendered(splits.train, "night", RENDERINGS, seed=5)
    cache = work / "latents.pt"
    if not cache.exists():
        torch.save(encoded(vae, images), cache)
    latents = torch.load(cache, weights_only=True)
    real, _ = rendered(splits.validation, "night", 1, seed=7)
    real = decoded(vae, encoded(vae, real))
    metric, judge = load_network("metric"), load_network("judge")
    noise, asked = torch.randn((500, 4, 8, 8), generator=torch.Generator().manual_seed(8)), torch.arange(500) % CLASSES
    with seeded(30):
        network = Denoiser()

    def loss(generator: torch.Generator) -> Tensor:
        index = draw(len(latents), 32, generator)
        clean = latents[index] + LATENT_NOISE * torch.randn((32, 4, 8, 8), generator=generator)
        timesteps = torch.randint(1000, (32,), generator=generator)
        target = torch.randn(clean.shape, generator=generator)
        classes = labels[index].where(torch.rand(32, generator=generator) >= UNCONDITIONAL, torch.tensor(CLASSES))
        return F.mse_loss(network(add_noise(clean, target, timesteps), timesteps, classes), target)

    @torch.no_grad()
    def figures(found: nn.Module) -> dict[str, float]:
        scores = {}
        for steps in (5, 10):
            drawn = decoded(vae, sample(found, noise, asked, steps, guidance=3.0))
            scores[f"fd@{steps}"] = frechet_distance(metric.features(real), metric.features(drawn))
            scores[f"right@{steps}"] = (judge(drawn).argmax(1) == asked).float().mean().item()
        drawn = decoded(vae, sample(found, noise, asked, 10, guidance=1.0))
        scores["fd@10, no guidance"] = frechet_distance(metric.features(real), metric.features(drawn))
        scores["right@10, no guidance"] = (judge(drawn).argmax(1) == asked).float().mean().item()
        return scores

    return train(network, loss, BASE, work / "base.pt", 31, figures)  # type: ignore[return-value]


# The discriminator's backbone and the metric's networks


class Backbone(nn.Module):
    """A small DINOv2, and what it is trained by: the class, and the colours of masked patches."""

    def __init__(self) -> None:
        super().__init__()
        self.dino = Dinov2Model(
            Dinov2Config(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, patch_size=8, image_size=64, mlp_ratio=3)
        )
        self.head, self.paint = nn.Linear(96, CLASSES), nn.Linear(48, 192)
        self._widen()

    @torch.no_grad()
    def _widen(self) -> None:
        """Start from larger weights and sinusoidal positions: a deviation of 0.02 leaves so narrow a network blind for long."""
        for module in self.dino.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        frequencies = torch.arange(1, 13) * math.pi / 16
        waves = [(along.flatten()[:, None] * frequencies + phase).cos() for along in (y, x) for phase in (0, math.pi / 2)]
        self.dino.embeddings.position_embeddings[0, 1:] = 0.5 * torch.cat(waves, dim=1)
        nn.init.normal_(self.dino.embeddings.patch_embeddings.projection.weight, std=1 / math.sqrt(192))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return class logits `(B, 10)` and the painted patches `(B, 64, 192)` of images `(B, 3, 64, 64)` in [-1, 1]."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        hidden = self.dino(((images + 1) / 2 - mean) / std, bool_masked_pos=mask).last_hidden_state
        return self.head(torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1)), self.paint(hidden[:, 1:])


def train_backbone(work: Path) -> Backbone:
    """Train the discriminator's backbone by classes and masked patches."""
    splits = load_splits()
    images, labels = both_styles(splits.backbone, 8, seed=11)
    unseen, right = both_styles(splits.validation, 1, seed=13)
    with seeded(40):
        network = Backbone()

    def loss(generator: torch.Generator) -> Tensor:
        index = draw(len(images), 48, generator)
        shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
        batch = torch.roll(images[index], shift, (2, 3))
        batch = batch + 0.05 * torch.randn(batch.shape, generator=generator)
        mask = torch.rand((48, 64), generator=generator) < 0.15
        logits, painted = network(batch, mask)
        patches = F.unfold(batch, 8, stride=8).transpose(1, 2)
        return F.cross_entropy(logits, labels[index]) + 2 * F.mse_loss(painted[mask], patches[mask])

    return train(network, loss, BACKBONE, work / "backbone.pt", 41, lambda n: accuracy(n, unseen, right))  # type: ignore


class Metric(nn.Module):
    """The metric's network; its 64 penultimate activations are the metric's features."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 64), kernel: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(narrow, wide, kernel, 2, kernel // 2), nn.BatchNorm2d(wide), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 64, 64), nn.ReLU())
        self.head = nn.Linear(64, CLASSES + 6)

    def features(self, images: Tensor) -> Tensor:
        """Return features `(B, 64)` of images `(B, 3, 64, 64)` in [-1, 1]."""
        return torch.cat([self.body(batch) for batch in images.split(100)])

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits `(B, 10)`."""
        return self.head(self.features(images))[:, :CLASSES]


def train_metric(name: str, work: Path) -> Metric:
    """Train the metric's network, or the judge, of another size, by classes and colours, on images as the VAE decodes them."""
    splits, vae = load_splits(), load_vae()
    images, labels = both_styles(splits.metric, 4, seed=15)
    through = decoded(vae, encoded(vae, images))
    unseen, right = both_styles(splits.validation, 1, seed=17)
    with seeded(50 if name == "metric" else 60):
        network = new_network(name)

    def loss(generator: torch.Generator) -> Tensor:
        index = draw(len(images), 64, generator)
        shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
        batch = torch.where(torch.rand((64, 1, 1, 1), generator=generator) < 0.5, images[index], through[index])
        batch = torch.roll(batch, shift, (2, 3)) + 0.03 * torch.randn(batch.shape, generator=generator)
        colours = torch.cat([batch.mean((2, 3)), batch.std((2, 3))], dim=1)
        out = network.head(network.features(batch))
        loss_class = F.cross_entropy(out[:, :CLASSES], labels[index], label_smoothing=0.05)
        return loss_class + F.mse_loss(out[:, CLASSES:], colours)

    return train(network, loss, METRIC, work / f"{name}.pt", 51, lambda n: accuracy(n, unseen, right))  # type: ignore


def new_network(name: str) -> Metric:
    """The metric's network, or the judge, untrained."""
    return Metric() if name == "metric" else Metric((32, 48, 48), kernel=5)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the share of images whose class is told."""
    out = network(images)
    logits = out[0] if isinstance(out, tuple) else out
    return {"accuracy": (logits.argmax(1) == labels).float().mean().item()}


def load_network(name: str) -> Metric:
    """The trained metric or judge, frozen."""
    return filled(new_network(name), load_file(ASSETS / f"{name}.safetensors"))


# Writing


def write(name: str, network: Any) -> None:
    """Put what was trained into the assets, in half precision."""
    model = ASSETS / "model"
    if name == "vae":
        network.half().save_pretrained(model / "vae")
    elif name == "base":
        vae = load_vae().half()
        vae.register_to_config(_name_or_path="")  # a folder of whoever trained it
        parts = (vae, network.text.half(), tokenizer(), network.unet.half(), models.scheduler())
        StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False).save_pretrained(model)
        tokenizers.save_for_host(tokenizer(), ASSETS / "tokenizers", tokenizers.CLIP_L)
    elif name == "backbone":
        network.dino.half().save_pretrained(ASSETS / "dinov2")
        size = {"height": 64, "width": 64}
        processor = BitImageProcessor(
            size={"shortest_edge": 64}, crop_size=size, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
        )
        processor.save_pretrained(ASSETS / "dinov2")
    else:
        ASSETS.mkdir(parents=True, exist_ok=True)
        save_file(halved(network), ASSETS / f"{name}.safetensors")


TRAININGS = {
    "vae": train_vae,
    "base": train_base,
    "backbone": train_backbone,
    "metric": lambda work: train_metric("metric", work),
    "judge": lambda work: train_metric("judge", work),
}


def main() -> None:
    """Train what is named, and write it."""
    given = what_to_train("small_sd", __doc__ or "", TRAININGS, "tests/assets/small_sd")
    for name in given.names:
        network = TRAININGS[name](given.work)
        if given.write:
            write(name, network)
            shutil.copy(given.work / f"{name}.jsonl", ASSETS / f"{name}.jsonl")


if __name__ == "__main__":
    main()
