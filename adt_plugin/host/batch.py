"""One batch of the host, from its noising to its backward pass: three states, each with all that is known in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adt_plugin.core.stopwatch import Stopwatch
from adt_plugin.host.calls import DenoiserCall
from adt_plugin.host.seams import SeamError


@dataclass(frozen=True)
class Idle:
    """No batch: before the first noising, during a turn, and between a backward pass and the next noising."""


@dataclass(frozen=True)
class Noised:
    """A batch, of training or of validation, whose clean latents are known.

    Attributes:
        latents: clean, `(B, C, h, w)`, without a graph.
        watch: started at the noising.
    """

    latents: Tensor
    watch: Stopwatch

    @classmethod
    def begin(cls, latents: Tensor, profile: bool) -> Noised:
        """Start a batch, and its stopwatch, which waits for the device if the run is profiled."""
        watch = Stopwatch(latents.device if profile else None)
        _ = watch.elapsed  # which starts it
        return cls(latents.detach(), watch)

    def predicted(self, call: DenoiserCall) -> Predicted:
        """Return the batch after the host's call of its denoiser.

        Raises:
            SeamError: the call's latents have another shape than those that were noised.
        """
        expected, found = call.convention.pack(self.latents).shape, getattr(call.latents, "shape", ())
        if found != expected:
            raise SeamError(f"the denoiser was called with {tuple(found)}, expected the latents' {tuple(expected)}")
        return Predicted(self, call)


@dataclass(frozen=True)
class Predicted:
    """A batch of training: the host has called its denoiser with gradient.

    Attributes:
        noised: the batch before that call.
        call: to be repeated by the turn.
        mask: what the host trains of its images, `(B, 1, H, W)` in [0, 1]; None for all of them.
        weights: of the images in the host's loss, `(B,)`; None weighs all alike.
        caption: of its first image, as the host has trained on it; empty where it is not known.
        prediction: what it returned, with its graph, for turns that come before the host's backward pass; else None.
    """

    noised: Noised
    call: DenoiserCall
    mask: Tensor | None = None
    weights: Tensor | None = None
    caption: str = ""
    prediction: Tensor | None = None

    @property
    def host_seconds(self) -> float:
        """Wall time since the noising."""
        return self.noised.watch.elapsed


Batch = Idle | Noised | Predicted
