"""Stages of a turn that need no more than their arguments, for turns and for whatever measures what turns cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adt_plugin.core.discriminator import Discriminator, PairFeatures
from adt_plugin.core.discriminator.losses import AdversarialLoss
from adt_plugin.core.distributed import all_reduce_gradients
from adt_plugin.core.images.crop import Crop

Decode = Callable[[Tensor], Tensor]
"""Latents `(B, C, h, w)` -> images `(B, 3, H, W)` in [-1, 1], differentiable."""


def decode_real(decode: Decode, clean: Tensor, crop: Crop) -> Tensor:
    """Decode the crop of the clean latents `(B, C, h, w)` without a graph: real = Dec(x_0)."""
    with torch.no_grad():
        return decode(crop.apply(clean))


def decode_generated(decode: Decode, latents: Tensor, crop: Crop, with_graph: bool) -> Tensor:
    """Decode the same crop of the unroll's last latents `(B, C, h, w)`: gen = Dec(x_0')."""
    with torch.set_grad_enabled(with_graph):
        return decode(crop.apply(latents))


def score_generated(
    discriminator: Discriminator,
    features: PairFeatures,
    loss: AdversarialLoss,
    with_graph: bool,
    diversity: float = 0.0,
    earlier: Sequence[PairFeatures] = (),
) -> tuple[Tensor, Tensor]:
    """Return the scores D(gen, real) `(B,)` and the generator's loss L_G, with a graph to the generated images if asked.

    Args:
        diversity: weight in L_G of what compares each image with other ones.
        earlier: other images for a batch of one.
    """
    with torch.set_grad_enabled(with_graph):
        scores = discriminator.score_gen(features)
        if not diversity:
            return scores, loss.generator(scores)
        return scores, loss.generator(scores + diversity * discriminator.score_among(features, earlier))


def discriminator_gradients(
    discriminator: Discriminator, features: PairFeatures, loss: AdversarialLoss, penalty: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the gradient of L_D, over the global batch, into the heads' parameters.

    Args:
        features: without a graph to the images.
        penalty: weight of the scores' mean squared slope; it is not part of the L_D that is returned.

    Returns:
        L_D, 0-dim, and the scores of real and of generated pairs, `(B,)`; none has a graph.
    """
    score_real, score_gen = discriminator.scores(features)
    loss_d = loss.discriminator(score_real, score_gen)
    discriminator.zero_grad(set_to_none=True)
    torch.autograd.backward(loss_d + penalty * discriminator.roughness(features, score_real, score_gen) if penalty else loss_d)
    all_reduce_gradients(discriminator.parameters())
    return loss_d.detach(), score_real.detach(), score_gen.detach()
