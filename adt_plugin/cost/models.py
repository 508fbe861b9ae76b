"""Models of true size with random weights: what a step costs does not depend on their values."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.diffusion.samplers import Sampler, build_flow_sampler, build_sampler
from adt_plugin.core.discriminator.backbone import FrozenBackbone, TokenGrids, four_blocks
from adt_plugin.core.discriminator.loaders import before_transformers_5
from adt_plugin.cost.stacks import Stack, StackSize
from adt_plugin.cost.video import VideoAutoencoder

BACKBONES = {"tiny": (32, 4, 2), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""DINOv2 by its name's last part: width, depth, heads. There is no tiny one; it is for tests."""
BACKBONE_PIXELS = 224


@dataclass(frozen=True)
class TrueSize:
    """A model family at its published size.

    Attributes:
        title: as tables show it.
        resolution: side in pixels of the images that it is usually trained on.
        build: its denoiser.
        bind: (denoiser, batch size) -> the denoiser with random conditioning bound.
        latent_channels: of its VAE.
        flow: flow matching, not noise prediction.
        vae_channels: of its VAE's levels; every level but the first halves the sides.
        video: its VAE is one for videos, which decodes an image as a single frame.
    """

    title: str
    resolution: int
    build: Callable[[], nn.Module]
    bind: Callable[[nn.Module, int], Denoiser]
    latent_channels: int = 4
    flow: bool = False
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    video: bool = False

    @property
    def pixels(self) -> int:
        """The image's pixels to one latent, along a side."""
        return 1 << (len(self.vae_channels) - 1)

    def sampler(self) -> Sampler:
        """Build the sampler of the unroll."""
        if self.flow:
            return build_flow_sampler(3.0, "linspace")
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        return build_sampler("ddim", torch.cumprod(1 - betas, 0), "epsilon")

    def vae(self) -> Any:
        """Build the autoencoder, whose decoder is what counts."""
        if self.video:
            return VideoAutoencoder(self.vae_channels, self.latent_channels)
        from diffusers import AutoencoderKL

        return AutoencoderKL(
            block_out_channels=self.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * len(self.vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(self.vae_channels),
            layers_per_block=2,
            latent_channels=self.latent_channels,
        )


def _sd15() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def _sdxl() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def _sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=128,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        num_attention_heads=24,
        attention_head_dim=64,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )


def _flux() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True)


STACKS = {
    "chroma": StackSize(3072, 24, 19, 38, hidden=12288, latent_channels=16, patch=2, context=512, modulation=None),
    "lumina": StackSize(
        2304, 24, 0, 26, hidden=9216, latent_channels=16, patch=2, context=256, kv_heads=8, gated=True, modulation=1024
    ),
    "anima": StackSize(2048, 16, 0, 28, hidden=8192, latent_channels=16, patch=2, context=512, cross=1024, modulation=256),
    "hunyuan": StackSize(3584, 28, 20, 40, hidden=14336, latent_channels=64, patch=1, context=1000 + 128),
}
"""Sizes as sd-scripts itself builds these models."""


def _stack(name: str) -> Callable[[], nn.Module]:
    return lambda: Stack(STACKS[name])


def _normal(network: nn.Module, *shape: int) -> Tensor:
    weight = next(p for p in network.parameters() if p.is_floating_point())
    return torch.randn(*shape, device=weight.device, dtype=weight.dtype)


def _bind_unet(network: nn.Module, batch: int) -> Denoiser:
    prompt = _normal(network, batch, 77, 768)
    return lambda x, t: network(x, t.to(x.device), prompt).sample


def _bind_sdxl(network: nn.Module, batch: int) -> Denoiser:
    prompt = _normal(network, batch, 77, 2048)
    added = {"text_embeds": _normal(network, batch, 1280), "time_ids": _normal(network, batch, 6)}
    return lambda x, t: network(x, t.to(x.device), prompt, added_cond_kwargs=added).sample


def _bind_sd3(network: nn.Module, batch: int) -> Denoiser:
    prompt, pooled = _normal(network, batch, 77 + 256, 4096), _normal(network, batch, 2048)  # CLIP's tokens and T5's
    return lambda x, t: network(x, prompt, pooled, t.to(x.device)).sample


def _bind_flux(network: nn.Module, batch: int) -> Denoiser:
    prompt, pooled, guidance = _normal(network, batch, 512, 4096), _normal(network, batch, 768), _normal(network, batch)
    text_ids = _normal(network, 512, 3)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        image_ids = x.new_zeros(x.shape[-2] * x.shape[-1] // 4, 3)
        packed = nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        output = network(
            hidden_states=packed,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            timestep=t.to(x.device) / 1000,
            img_ids=image_ids,
            txt_ids=text_ids,
            guidance=guidance,
        ).sample
        return nn.functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, (x.shape[-2] // 2, x.shape[-1] // 2)), 2)

    return denoiser


def _bind_stack(network: nn.Module, batch: int) -> Denoiser:
    assert isinstance(network, Stack)
    prompt = _normal(network, batch, network.size.context, network.size.cross or network.size.width)
    return lambda x, t: network(x, prompt)


MODELS = {
    "sd15": TrueSize("Stable Diffusion 1.5", 512, _sd15, _bind_unet),
    "sdxl": TrueSize("SDXL", 1024, _sdxl, _bind_sdxl),
    "sd3": TrueSize("SD3-medium", 1024, _sd3, _bind_sd3, latent_channels=16, flow=True),
    "flux": TrueSize("FLUX.1", 1024, _flux, _bind_flux, latent_channels=16, flow=True),
    "chroma": TrueSize("Chroma", 1024, _stack("chroma"), _bind_stack, latent_channels=16, flow=True),
    "lumina": TrueSize("Lumina Image 2.0", 1024, _stack("lumina"), _bind_stack, latent_channels=16, flow=True),
    "anima": TrueSize("Anima", 1024, _stack("anima"), _bind_stack, 16, flow=True, vae_channels=(96, 192, 384, 384), video=True),
    "hunyuan": TrueSize(
        "HunyuanImage-2.1", 2048, _stack("hunyuan"), _bind_stack, 64, flow=True, vae_channels=(128, 256, 512, 512, 1024, 1024)
    ),
}
"""Every family that the plugin trains. Anima's decoder is sd-scripts' default, one for videos; that of
`--qwen_image_vae_2d` does without the convolutions over time, which are two thirds of its work."""


def dinov2(name: str) -> FrozenBackbone:
    """Build a random DINOv2 read at four blocks, as the plugin loads it.

    Raises:
        KeyError: another size than those of `BACKBONES`.
    """
    from transformers import Dinov2Config, Dinov2Model

    width, depth, heads = BACKBONES[name]
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    with uninitialised():  # its truncated normals look at their own values, which a counted model does not have
        model = Dinov2Model(Dinov2Config(**sizes, patch_size=14, image_size=BACKBONE_PIXELS))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    blocks = four_blocks(depth)
    network = TokenGrids(model, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), blocks)
    return FrozenBackbone(network, [width] * len(blocks), 14, BACKBONE_PIXELS)


def uninitialised() -> AbstractContextManager[None]:
    """Return transformers' own way to build a model without initial weights; version 5 keeps it elsewhere."""
    module: Any = import_module("transformers.modeling_utils" if before_transformers_5() else "transformers.initialization")
    return module.no_init_weights()


class LowRank(nn.Module):
    """LoRA on the linear layers of a frozen network's transformer blocks, by hooks on their outputs (arXiv 2106.09685).

    Args:
        network: frozen here.
        rank: of every update; 0 makes none.
    """

    def __init__(self, network: nn.Module, rank: int) -> None:
        super().__init__()
        network.requires_grad_(False)
        self.pairs = nn.ModuleList()
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear) and "transformer_blocks" in name:
                pair = nn.Sequential(
                    nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
                )
                nn.init.zeros_(pair[1].weight)  # type: ignore[arg-type]
                self.pairs.append(pair)
                layer.register_forward_hook(_adding(pair))


def _adding(pair: nn.Module) -> Callable[..., Tensor]:
    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = (weight.to(output.dtype) for weight in pair.parameters())
        return output + nn.functional.linear(nn.functional.linear(inputs[0], down), up)

    return add
