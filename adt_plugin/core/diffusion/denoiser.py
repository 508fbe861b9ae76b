"""The denoiser as the core sees it: a function of latents and timesteps, called so that a second call is the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adt_plugin.core.rng import seed_everything

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`(x (B, C, h, w), t (B,)) -> prediction (B, C, h, w)`: noise, v or flow velocity, as the sampler is built for."""


class Guided:
    """A denoiser under classifier-free guidance, o = u + scale (c - u) (Ho & Salimans, arXiv 2207.12598).

    It is trained through the conditional prediction alone, do/dtheta = scale dc/dtheta: the empty prompt's is what the
    prompt's is compared with, and no fine-tune without caption dropout trains it. That costs less, and served better on the
    small Stable Diffusion (docs/method.md; ours).

    Args:
        conditional, unconditional: the same network with the prompt's and with the empty prompt's conditioning bound.
        scale: guidance scale; 1 is the conditional prediction alone.
    """

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, scale: float) -> None:
        self.scale, self.parts = scale, ((scale, conditional), (1.0 - scale, unconditional))

    def at(self, scale: float) -> Guided:
        """Return the same two predictions, mixed at another scale."""
        (_, conditional), (_, unconditional) = self.parts
        return Guided(conditional, unconditional, scale)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided prediction `(B, C, h, w)`."""
        (weight, first), (other_weight, second) = self.parts
        return weight * first(x, t) + other_weight * second(x, t)


def at_scale(denoiser: Denoiser, scale: float) -> Denoiser:
    """Return a guided denoiser at another scale, and any other one as it is."""
    return denoiser.at(scale) if isinstance(denoiser, Guided) else denoiser


def scale_of(denoiser: Denoiser) -> float:
    """Return the guidance scale of a denoiser; 1 where it is not guided."""
    return denoiser.scale if isinstance(denoiser, Guided) else 1.0


def parts_of(denoiser: Denoiser) -> tuple[tuple[float, Denoiser], ...]:
    """Return (weight, call) pairs whose weighted sum is the denoiser's prediction; the first is the one that is trained."""
    return denoiser.parts if isinstance(denoiser, Guided) else ((1.0, denoiser),)


def call_seeded(denoiser: Denoiser, model_input: Tensor, timestep: Tensor, seed: int) -> Tensor:
    """Call the denoiser with the global generators seeded, so that the same seed gives the same dropout.

    Each part of a guided one is seeded alike: conditional and unconditional prediction come from the same network. A graph,
    where one is recorded, leads through the conditional one.
    """
    t = torch.full((len(model_input),), timestep.item(), dtype=timestep.dtype, device=model_input.device)
    (weight, part), *others = parts_of(denoiser)
    seed_everything(seed)
    output = part(model_input, t)
    if not others:
        return output
    output = weight * output
    for weight, part in others:
        seed_everything(seed)
        with torch.no_grad():
            constant = weight * part(model_input, t)
        output = output + constant
    return output


def call_with_graph(denoiser: Denoiser, model_input: Tensor, timestep: Tensor, seed: int) -> Tensor:
    """Call like `call_seeded`, with a graph from the parameters to the output whatever the surrounding grad mode."""
    # A grad-requiring input: reentrant checkpointing gives outputs without grad otherwise.
    model_input = model_input.detach().requires_grad_(True)
    with torch.enable_grad():
        return call_seeded(denoiser, model_input, timestep, seed)
