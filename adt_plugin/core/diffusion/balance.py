"""The weight of the adversarial gradient against the diffusion loss's own, both at the denoiser's output.

Norms at the output are known without touching a parameter, and their ratio does not depend on the model's size, the
latents' resolution or the loss's scale, so that one `--adt_weight` means the same for every model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """Return the value in float32, or as it is in float64."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


KNOWN = 4
"""So many measured norms make an average that `cap` trusts (ours); the warm-up measures more of them."""


class EMA:
    """Exponential moving average of a scalar tensor, bias-corrected (as Adam's), on the tensor's own device."""

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self.total: Tensor | None = None
        self.correction: Tensor | None = None

    def update(self, value: Tensor) -> None:
        """Add a 0-dim value; a non-finite one leaves the average as it is."""
        value = at_least_float32(value.detach())
        if self.total is None or self.correction is None:
            self.total, self.correction = torch.zeros_like(value), torch.zeros_like(value)
        finite, share = value.isfinite(), 1 - self.decay
        self.total = torch.where(finite, self.decay * self.total + share * value, self.total)
        self.correction = torch.where(finite, self.decay * self.correction + share, self.correction)

    @property
    def value(self) -> Tensor | None:
        """The average (0 before the first finite value), or None before the first value."""
        if self.total is None or self.correction is None:
            return None
        return self.total / self.correction.clamp_min(torch.finfo(self.correction.dtype).tiny)

    def has_seen(self, count: int) -> Tensor | None:
        """Return whether it holds at least so many finite values, as a 0-dim bool on their device; None before the first."""
        return None if self.correction is None else self.correction > 1 - self.decay ** (count - 0.5)


class GradientBalance:
    """Scales dL_adv/do so that its norm is `weight` times that of dL_diff/do.

    Modes (`--adt_balance`):
        ratio: every turn's norm is exactly `weight` times the average diffusion norm.
        cap: a turn of average norm is scaled to that; one with a smaller gradient than the average stays smaller in
            proportion, so that a discriminator with nothing to say is not amplified. The average is
            known from the end of the warm-up on. Where fewer than `KNOWN` norms have been seen, as in the first turns of a
            run without a warm-up, a gradient may get smaller, but no larger.
        none: the plain factor `weight` (lambda in the paper's notation).
    In every mode the result is bounded to `max_ratio` times the average diffusion norm.

    Args:
        mode: one of the above.
        weight: >= 0.
        max_ratio: >= 0.
    """

    def __init__(self, mode: str, weight: float, max_ratio: float) -> None:
        self.mode, self.weight, self.max_ratio = mode, weight, max_ratio
        self.diffusion, self.adversarial = EMA(), EMA()

    def measure(self, norm: Tensor) -> None:
        """Take in the norm of an adversarial gradient (0-dim) that is not applied, as at the end of the warm-up."""
        self.adversarial.update(norm)

    def scale(self, norm: Tensor) -> Tensor:
        """Return the factor for an adversarial gradient of this norm (0-dim); 0 for a non-finite one.

        Raises:
            RuntimeError: no diffusion gradient has been seen yet, though the mode or the bound needs one.
        """
        known = self.adversarial.has_seen(KNOWN)
        self.adversarial.update(norm)
        diffusion, average = self.diffusion.value, self.adversarial.value
        assert average is not None  # just updated
        if diffusion is None and self.mode != "none":
            raise RuntimeError(
                "no diffusion gradient seen: call AdversarialTurn.watch(prediction) before the diffusion loss's backward"
            )
        tiny = torch.finfo(torch.float32).tiny
        norm = at_least_float32(norm)
        if self.mode == "none" or diffusion is None:
            factor = torch.full_like(norm, self.weight)
        else:
            reference = norm if self.mode == "ratio" else torch.maximum(norm, average)
            factor = self.weight * diffusion / reference.clamp_min(tiny)
        if self.mode == "cap":
            unamplified = factor.clamp_max(1.0)
            factor = unamplified if known is None else torch.where(known, factor, unamplified)
        if diffusion is not None:
            factor = torch.minimum(factor, self.max_ratio * diffusion / norm.clamp_min(tiny))
        return torch.where(norm.isfinite() & factor.isfinite(), factor, torch.zeros_like(factor))
