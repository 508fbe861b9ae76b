"""A look at what the sampler makes of one image, between turns, that leaves no trace in the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from adt_plugin.core.diffusion.balance import at_least_float32
from adt_plugin.core.diffusion.denoiser import Denoiser
from adt_plugin.core.images.crop import Crop
from adt_plugin.core.out_of_memory import OUT_OF_MEMORY, free_what_is_cached
from adt_plugin.core.rng import draw_seed, preserved_rng
from adt_plugin.core.turn import AdversarialTurn

MODEST = 256
"""Side in pixels of what is decoded where the whole image does not fit into memory and turns decode whole images."""


@dataclass
class Look:
    """What was seen.

    Attributes:
        gen, real: `(1, 3, H, W)` in about [-1, 1], of the first image of the batch.
        score_gen, score_real: of a generated and of a real pair.
        start: steps unrolled.
    """

    gen: Tensor
    real: Tensor
    score_gen: float
    score_real: float
    start: int


@torch.no_grad()
def look(turn: AdversarialTurn, denoiser: Denoiser, latents: Tensor, start: int, seed: int) -> Look:
    """Walk from the noised latents as a turn does, and decode and judge the first image.

    Nothing is drawn from the turn's generators or the global ones, no statistics are collected, no gradient is made.

    Args:
        latents: clean, `(B, C, h, w)`; as many as the denoiser has conditioning for.
        start: s in 1..m.
        seed: of the noise and of the augmentation.
    """
    clean, generator = at_least_float32(latents.detach()), torch.Generator().manual_seed(seed)
    with preserved_rng(), _own_draws(turn, seed):
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
        noised = turn.noised_start(turn.sampler, clean, noise, turn.config.steps, start)
        seeds = [draw_seed(generator) for _ in range(start)]
        path = turn.unroll(denoiser, turn.sampler, noised, seeds, [], False, None)
        with turn.offload.resident(clean.device):
            gen, real = _decoded(turn, path.latents[:1], clean[:1])
            score_real, score_gen = turn.discriminator.scores(turn.discriminator.features_of(gen, real))
    return Look(gen, real, float(score_gen.mean()), float(score_real.mean()), start)


@contextmanager
def _own_draws(turn: AdversarialTurn, seed: int) -> Iterator[None]:
    """Let the augmentation draw from this seed inside, and go on afterwards where it was."""
    generator = turn.discriminator.generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _decoded(turn: AdversarialTurn, gen: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Decode both images whole, or the middle of both where a device's memory is too small for that."""
    try:
        return turn.decode(gen), turn.decode(real)
    except OUT_OF_MEMORY:
        pass  # its frames hold what was decoded so far: they are gone below
    free_what_is_cached(gen.device)
    rows, columns = gen.shape[-2:]
    side = min((turn.config.decode_crop or MODEST) // turn.latent_pixels, rows, columns)
    crop = Crop((rows - side) // 2, (columns - side) // 2, side, side)
    return turn.decode(crop.apply(gen)), turn.decode(crop.apply(real))
