"""The video decoder that Anima is counted with has the layers of the host's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adt_plugin.core.images.decoding import LatentDecoder, LatentFormat, diffusers_blocks
from adt_plugin.cost.models import MODELS
from adt_plugin.cost.video import VideoAutoencoder
from tinyhost.run import host_environment

HOSTS_OWN = """
import json, torch
from library.qwen_image_autoencoder_kl import AutoencoderKLQwenImage
with torch.device("meta"):
    vae = AutoencoderKLQwenImage()
parts = {**dict(vae.decoder.named_parameters()), **{f"post.{n}": p for n, p in vae.post_quant_conv.named_parameters()}}
print(json.dumps([list(p.shape) for n, p in parts.items() if "time_conv" not in n]))
"""
"""Convolutions that double the frames in time are never run on an image."""


def test_it_has_the_weights_of_the_hosts_decoder(host_dir: Path, tmp_path: Path) -> None:
    if not (host_dir / "library" / "qwen_image_autoencoder_kl.py").is_file():
        pytest.skip(f"{host_dir.name} has no Anima")
    command, variables = [sys.executable, "-c", HOSTS_OWN], host_environment(None, tmp_path)
    done = subprocess.run(command, cwd=host_dir, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with torch.device("meta"):
        own = MODELS["anima"].vae()
    shapes = [list(parameter.shape) for parameter in own.parameters()]
    sizes = [[torch.Size(shape).numel() for shape in found] for found in (shapes, json.loads(done.stdout.splitlines()[-1]))]
    assert sorted(sizes[0]) == sorted(sizes[1])


def test_a_frame_is_decoded_and_every_weight_is_used() -> None:
    vae = VideoAutoencoder((4, 8, 16, 16), latent_channels=3)
    decoder = LatentDecoder(vae.decoder, vae.post_quant_conv, LatentFormat(1.0, frames=True))
    decoder.requires_grad_(True)
    assert len(list(diffusers_blocks(vae.decoder))) == 3 + 4 * 3 + 3  # the middle, the levels, the ways between them
    latents = torch.randn(2, 3, 4, 6).requires_grad_()
    images = decoder(latents)
    assert images.shape == (2, 3, 32, 48)
    images.square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in decoder.parameters())
