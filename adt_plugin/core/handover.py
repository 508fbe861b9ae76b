"""What the stages of a turn hand to each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adt_plugin.core.discriminator import PairFeatures


@dataclass
class GeneratorGradients:
    """dL_G/do_i at the denoiser's outputs, all on the device.

    Attributes:
        vectors: position -> gradient as it will be applied, `(B, C, h, w)`; empty where no step carries gradient.
        raw: norm over these positions before balancing; 0 where there are none.
        applied: the same after balancing and weighing.
        by_step: norm at every step walked, before balancing; empty where no step carries gradient.
    """

    vectors: dict[int, Tensor]
    raw: Tensor
    applied: Tensor
    by_step: Tensor


@dataclass
class Seen:
    """What the discriminator has looked at in a turn, and what it made of it.

    Attributes:
        gen, real: images `(B, 3, H, W)`.
        features: of both.
        scores: D(gen, real) `(B,)`.
        loss_g: the generator's loss L_G, 0-dim.
    """

    gen: Tensor
    real: Tensor
    features: PairFeatures
    scores: Tensor
    loss_g: Tensor

    def detached(self) -> Seen:
        """Return the same without a graph to the denoiser's outputs."""
        features = self.features.detached()
        return Seen(self.gen.detach(), self.real, features, self.scores.detach(), self.loss_g.detach())


@dataclass(frozen=True)
class Outcome:
    """What a turn has drawn, and what became of it.

    Attributes:
        start: s in 1..m.
        cfg_scale: of guidance.
        sound: both gradients are finite in all processes.
        overflows: the loop's own step will be skipped.
    """

    start: int
    cfg_scale: float
    sound: bool
    overflows: bool

    @property
    def teaches(self) -> bool:
        """Whether the heads have stepped, and the turn's features are worth keeping."""
        return self.sound and not self.overflows
