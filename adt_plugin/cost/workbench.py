"""Everything that a run holds, at true size, and the parts that its steps are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adt_plugin.core.config import OWN_DECODER, ADTConfig
from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.discriminator import Discriminator, PairFeatures
from adt_plugin.core.discriminator.history import IMAGES, TURNS
from adt_plugin.core.discriminator.losses import LOSSES
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.images.crop import Crop
from adt_plugin.core.images.decoding import LatentDecoder, LatentFormat, TinyDecoder
from adt_plugin.core.stages import decode_generated, decode_real, discriminator_gradients, score_generated
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.cost import tiny
from adt_plugin.cost.models import BACKBONE_PIXELS, BACKBONES, MODELS, LowRank, TrueSize, dinov2

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Workload:
    """A run without `--adt`.

    Attributes:
        model: of `MODELS`, or `tiny`.
        resolution: side of the square images in pixels, a multiple of 64; 0 is the model's own.
        batch: images per step.
        rank: of the LoRA; 0 trains all weights.
        checkpointing: of the denoiser's gradient.
        dtype: of the denoiser's weights and activations; the LoRA's weights are fp32.
    """

    model: str = "sd15"
    resolution: int = 0
    batch: int = 1
    rank: int = 16
    checkpointing: bool = True
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.resolution % 64:
            raise ConfigError(f"--resolution must be a multiple of 64; got {self.resolution}.")

    @property
    def size(self) -> TrueSize:
        """The model."""
        return ({tiny.NAME: tiny.TINY} | MODELS)[self.model]

    @property
    def side(self) -> int:
        """Side of the square latents."""
        return (self.resolution or self.size.resolution) // self.size.pixels

    @property
    def pixels(self) -> int:
        """Side of the square images."""
        return self.side * self.size.pixels

    def __str__(self) -> str:
        pixels, trained = self.pixels, f"LoRA of rank {self.rank}" if self.rank else "all weights"
        checkpointing = "gradient checkpointing" if self.checkpointing else "no gradient checkpointing"
        return f"{self.size.title}, {pixels}x{pixels}, batch {self.batch}, {trained}, {checkpointing}, {self.dtype}"


class Workbench:
    """A run's networks and one batch.

    Args:
        workload: the run without the plugin.
        config: the plugin's options; a decoder other than the VAE's stands for one of TAESD's size, and the backbone is
            the DINOv2 whose size (`small`, `base`, `large`) its name ends in, else base.
        device: where everything lies.
        visual_dtype: of decoder and backbone.
    """

    def __init__(self, workload: Workload, config: ADTConfig, device: torch.device, visual_dtype: torch.dtype) -> None:
        self.workload, self.config, self.device = workload, config, device
        self.loss = LOSSES[config.disc_loss]
        size, dtype = workload.size, DTYPES[workload.dtype]
        with built_as(visual_dtype, device):
            self.decoder = decoder_of(size, config)
            backbone = dinov2(next((name for name in BACKBONES if config.backbone.endswith(name)), "base"))
        with built_as(dtype, device):
            self.network = size.build()
            if workload.checkpointing:
                self.network.enable_gradient_checkpointing()  # type: ignore[operator]
            self.network.train()
            self.bound = size.bind(self.network, workload.batch)
        with built_as(torch.float32, device):
            self.adapter = LowRank(self.network, workload.rank) if workload.rank else None
            self.discriminator = Discriminator.from_config(config, backbone)
            self.clean = torch.randn(workload.batch, size.latent_channels, workload.side, workload.side, device=device)
            self.timesteps = torch.full((workload.batch,), 500, device=device)
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)
        side = min(config.decode_crop // size.pixels or workload.side, workload.side)
        self.crop = Crop(0, 0, side, side)

    def turn(self, config: ADTConfig) -> AdversarialTurn:
        """Build turns with these options; those that decoder and backbone depend on must be the workbench's."""
        sampler = self.workload.size.sampler()
        return AdversarialTurn(
            config,
            sampler=sampler,
            decode=self.decoder,
            discriminator=self.discriminator,
            decoder=self.decoder,
            latent_pixels=self.workload.size.pixels,
        )

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the host's optimizer trains."""
        module = self.network if self.adapter is None else self.adapter
        return list(module.parameters())

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser as the host calls it; takes latents of any precision."""
        dtype = DTYPES[self.workload.dtype]
        return lambda x, t: self.bound(x.to(dtype), t)

    def visual_tensors(self) -> list[Tensor]:
        """Return the weights of decoder and backbone, which only the middle of a turn needs."""
        return [*tensors_of(self.decoder), *self.backbone_tensors()]

    def backbone_tensors(self) -> list[Tensor]:
        """Return the weights of the frozen backbone."""
        return tensors_of(self.discriminator.backbone._network)

    def head_tensors(self) -> list[Tensor]:
        """Return the weights and statistics of the discriminator's heads."""
        return tensors_of(self.discriminator)

    def tensors(self) -> list[Tensor]:
        """Return everything that stays between steps, the host's optimizer included, but for what a turn owns."""
        moments = moments_of(self.optimizer)
        adapter = tensors_of(self.adapter) if self.adapter is not None else []
        return [*tensors_of(self.network), *adapter, *moments, *self.visual_tensors(), *self.head_tensors(), self.clean]

    def own_bytes(self) -> int:
        """Return the bytes of the plugin's weights: decoder, backbone and heads."""
        return nbytes(self.visual_tensors()) + nbytes(self.head_tensors())

    def history_bytes(self) -> int:
        """Return the size of the features that turns remember, in two bytes each."""
        backbone = self.discriminator.backbone
        side = (self.discriminator.image_size or BACKBONE_PIXELS) // backbone.patch_size
        return 2 * TURNS * len(IMAGES) * self.workload.batch * sum(backbone.channels) * side**2

    def settle(self) -> None:
        """Mark the heads' statistics as collected, as they are after the first turns."""
        for standardize in self.discriminator.standardizers:
            standardize.seen = standardize.updates

    def compile_backbone(self) -> None:
        """Compile the frozen backbone; the first call pays for it."""
        self.discriminator.backbone._network.compile()

    def place(self, config: ADTConfig) -> None:
        """Put decoder and backbone where a run with these options keeps them between turns."""
        for module in (self.decoder, self.discriminator.backbone):
            module.to("cpu" if config.offload else self.device)

    # The parts of a step, each alone

    def forward(self) -> None:
        """Call the denoiser as the unroll does, without gradient."""
        with torch.no_grad():
            self.denoiser(self.clean, self.timesteps)

    def forward_with_graph(self) -> Tensor:
        """Call the denoiser and keep its graph."""
        return self.denoiser(self.clean, self.timesteps)

    def step(self) -> None:
        """Run the diffusion loss forward and backward; a replayed step costs the same."""
        F.mse_loss(self.forward_with_graph().float(), self.clean).backward()

    def decode_real(self) -> None:
        """Decode the real images."""
        decode_real(self.decoder, self.clean, self.crop)

    def decode_generated(self) -> Tensor:
        """Decode the generated images and pull back through the decoder; returns the gradient."""
        latents = self.clean.clone().requires_grad_()
        return torch.autograd.grad(decode_generated(self.decoder, latents, self.crop, with_graph=True).sum(), latents)[0]

    def judge(self) -> None:
        """Run three backbone passes, the generator's gradient at its images, and the heads' own gradient."""
        side = self.crop.apply(self.clean).shape[-1] * self.decoder.latent_format.pixels
        images = torch.zeros(self.workload.batch, 3, side, side, device=self.device).requires_grad_()
        self._judge(images, images.detach(), images)

    def supervise(self) -> None:
        """Decode and judge, as a turn holds both in memory at one time."""
        real = decode_real(self.decoder, self.clean, self.crop)
        latents = self.clean.clone().requires_grad_()
        self._judge(decode_generated(self.decoder, latents, self.crop, with_graph=True), real, latents)

    def _judge(self, generated: Tensor, real: Tensor, leaf: Tensor) -> None:
        features = self.discriminator.pair_features(generated, real)
        _, loss_g = score_generated(self.discriminator, features, self.loss, with_graph=True)
        torch.autograd.grad(loss_g, leaf)
        self.train_heads(features.detached())
        self.discriminator.zero_grad(set_to_none=True)

    def train_heads(self, features: PairFeatures) -> None:
        """Put the heads' gradient into their parameters as often as a turn does."""
        for _ in range(self.config.disc_steps):
            discriminator_gradients(self.discriminator, features, self.loss, self.config.disc_penalty)

    # Whole steps

    def plain_step(self) -> None:
        """Take a step of the host without `--adt`."""
        self.step()
        self.finish()

    def finish(self) -> None:
        """Clip, step, and free the gradient, as the host does."""
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def adt_step(self, turn: AdversarialTurn) -> None:
        """Take a step of the host with a turn."""
        prediction = self.forward_with_graph().float()
        STEPS.get(turn.config.memory, own_passes)(self, turn, prediction, F.mse_loss(prediction, self.clean))
        self.finish()


def own_passes(bench: Workbench, turn: AdversarialTurn, prediction: Tensor, loss: Tensor) -> None:
    """Run the host's backward pass, then the turn with its own."""
    turn.watch(prediction)
    loss.backward()
    turn(bench.denoiser, bench.clean)


def joined_pass(bench: Workbench, turn: AdversarialTurn, prediction: Tensor, loss: Tensor) -> None:
    """Run the turn with one backward pass for both."""
    turn.measure(loss, prediction)
    turn(bench.denoiser, bench.clean, loss=loss)


STEPS = {"joined": joined_pass}
"""By `--adt_memory`; all others have passes of their own."""


def decoder_of(size: TrueSize, config: ADTConfig) -> LatentDecoder | TinyDecoder:
    """Build the VAE's own decoder, or one of TAESD's size."""
    if config.decoder == OWN_DECODER:
        vae = size.vae()
        latent_format = LatentFormat(0.18215, frames=size.video, pixels=size.pixels)
        return LatentDecoder(vae.decoder, getattr(vae, "post_quant_conv", None), latent_format)
    from diffusers import AutoencoderTiny

    return TinyDecoder(AutoencoderTiny(latent_channels=size.latent_channels))


def moments_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors that an optimizer remembers from step to step."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def built_as(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Build what is built inside in this precision and on this device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
