"""Random models and images for the tests: nothing is downloaded, everything follows from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from tinyhost import families
from tinyhost.tokenizers import clip_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import PreTrainedModel

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

CAPTIONS = ("a red square", "a green disc", "a blue square", "a yellow disc")
COLOURS = ("red", "green", "blue", "yellow")

TinyModel = Callable[[str], "HostModel"]


@dataclass(frozen=True)
class HostModel:
    """What a script of the host needs to load one model.

    `family` is the family whose sizes the host is shrunk to, or a module of `tinyhost.true`, such as `true.flux`, which shrinks
    the text encoders alone; None leaves the host as it is.
    """

    checkpoint: Path
    tokenizers: Path
    network_module: str
    family: str | None = None
    arguments: tuple[str, ...] = ()


def write_tiny_model(family: str, folder: Path) -> HostModel:
    """Write the random tiny model of one family (a module of `tinyhost.families`) into `folder`."""
    module = families.load(family)
    tokenizers = folder / "tokenizers"
    module.write_tokenizers(tokenizers)
    checkpoint = module.write(folder / family)
    arguments = tuple(map(str, module.arguments(folder / family)))
    return HostModel(checkpoint, tokenizers, module.NETWORK_MODULE, family, arguments)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block from `seed`; torch's default generators go on afterwards as if it had not run."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


# Diffusion models


def autoencoder(block_out_channels: tuple[int, ...], layers_per_block: int) -> AutoencoderKL:
    """A random image autoencoder, 8 pixels to one latent as in Stable Diffusion."""
    from diffusers import AutoencoderKL

    blocks = len(block_out_channels)
    return AutoencoderKL(
        block_out_channels=block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        layers_per_block=layers_per_block,
        sample_size=512,
    )


def save_stable_diffusion(folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: PreTrainedModel) -> Path:
    """Save the three parts as a diffusers folder with a tokenizer and the scheduler of Stable Diffusion."""
    from diffusers import StableDiffusionPipeline

    parts = (vae, text_encoder, clip_tokenizer(), unet, scheduler())
    StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False).save_pretrained(folder)
    return folder


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


# Frozen backbones of the discriminator


def write_dinov2(folder: Path, registers: int = 0) -> Path:
    """A random DINOv2 (4 layers, width 32, patch 14, 56x56 pixels), with register tokens if asked for, and its preprocessor."""
    import transformers

    config = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    with seeded(0):
        if registers:
            config_with_registers = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **config)
            model: PreTrainedModel = transformers.Dinov2WithRegistersModel(config_with_registers)
        else:
            model = transformers.Dinov2Model(transformers.Dinov2Config(**config))
    model.save_pretrained(folder)
    write_preprocessor(folder, size=56)
    return folder


def write_preprocessor(folder: Path, size: int) -> None:
    """The preprocessor file that DINOv2 is published with, for `size` pixels."""
    from transformers import BitImageProcessor

    BitImageProcessor(
        size={"shortest_edge": size * 256 // 224},
        crop_size={"height": size, "width": size},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ).save_pretrained(folder)


# Images


def write_images(folder: Path, sizes: Sequence[tuple[int, int]] = ((64, 64),), count: int = 4, repeats: int = 4) -> Path:
    """A training folder: `count` PNG images with captions, of the given (width, height) in turn.

    The images lie in `<folder>/<repeats>_shapes`, the host's DreamBooth layout; `<folder>/meta.json` is for fine_tune.py.
    """
    subset = folder / f"{repeats}_shapes"
    subset.mkdir(parents=True, exist_ok=True)
    metadata = {}
    for i in range(count):
        size, caption = sizes[i % len(sizes)], CAPTIONS[i % len(CAPTIONS)]
        path = subset / f"{i}.png"
        draw_shape(size, COLOURS[i % len(COLOURS)], disc="disc" in caption, seed=i).save(path)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        metadata[str(path)] = {"caption": caption, "train_resolution": list(size)}
    (folder / "meta.json").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


def draw_shape(size: tuple[int, int], colour: str, disc: bool, seed: int) -> Image.Image:
    """One coloured shape in the middle of grey noise."""
    width, height = size
    noise = np.random.default_rng(seed).integers(96, 160, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    box = (width // 4, height // 4, width * 3 // 4, height * 3 // 4)
    if disc:
        draw.ellipse(box, fill=colour)
    else:
        draw.rectangle(box, fill=colour)
    return image
