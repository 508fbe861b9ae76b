"""Which unrolled steps carry gradient, and the exact replay that makes memory constant.

With the denoiser's input stopped, dL/dtheta = sum over i in M of (dL/do_i) (do_i/dtheta), M the steps that carry gradient. The
unroll keeps no graph through the network; the vectors dL/do_i come from `leaf_gradients`, and each step in M is then run once
more with gradient (`replay`). Peak memory is that of one denoiser call, whatever the number of steps (docs/method.md, 'Exact
replay'). Where memory allows, the unroll keeps the graphs of these steps (`--adt_memory fast`), and nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adt_plugin.core.diffusion.denoiser import Denoiser, call_with_graph, parts_of
from adt_plugin.core.diffusion.unroll import Unroll

Backward = Callable[[Tensor], None]
"""Runs the backward pass of a scalar, as `accelerator.backward`."""


@dataclass(frozen=True)
class Candidate:
    """A walked step that may carry gradient.

    Attributes:
        position: in the unroll; 0 is the first step walked.
        weight: |dx_0'/do_i|, what the step's output counts for in the image; 1 where the mask does not ask.
    """

    position: int
    weight: float


Mask = Callable[[Sequence[Candidate], int, torch.Generator], list[int]]
"""Chooses so many positions among the candidates, in the order of the unroll."""


def _random_positions(candidates: Sequence[Candidate], count: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(candidates), generator=generator)[:count]
    return sorted(candidates[int(i)].position for i in order)


def _weighted_positions(candidates: Sequence[Candidate], count: int, generator: torch.Generator) -> list[int]:
    """Draw steps with chances in proportion to their weights: none is replayed for a hundredth of the gradient (ours)."""
    weights = torch.tensor([max(candidate.weight, NEGLIGIBLE) for candidate in candidates])
    drawn = torch.multinomial(weights, count, generator=generator)
    return sorted(candidates[int(i)].position for i in drawn)


def _even_positions(candidates: Sequence[Candidate], count: int, generator: torch.Generator) -> list[int]:
    """Space them evenly from a random offset (DRTune, arXiv 2405.00760)."""
    stride = len(candidates) / count
    offset = float(torch.rand((), generator=generator)) * stride
    return [candidates[min(int(offset + i * stride), len(candidates) - 1)].position for i in range(count)]


def _last_positions(candidates: Sequence[Candidate], count: int, generator: torch.Generator) -> list[int]:
    return [candidate.position for candidate in candidates[-count:]]


def _all_positions(candidates: Sequence[Candidate], count: int, generator: torch.Generator) -> list[int]:
    return [candidate.position for candidate in candidates]


NEGLIGIBLE = 1e-6
"""The least weight in a draw: a step that counts for nothing is drawn where there is no other."""

GRAD_MASKS: dict[str, Mask] = {
    "weighted": _weighted_positions,
    "random": _random_positions,
    "even": _even_positions,
    "last": _last_positions,
    "all": _all_positions,
}
"""By `--adt_grad_mask`."""

WEIGHING = ("weighted",)
"""Those that read the candidates' weights, which it takes a walk of the sampler to know."""


def choose_grad_positions(kind: str, candidates: Sequence[Candidate], count: int, generator: torch.Generator) -> list[int]:
    """Choose the positions M of the unroll that carry gradient, in the order of the unroll.

    Args:
        kind: a key of `GRAD_MASKS`.
        candidates: steps that may be chosen, first to last.
        count: K; fewer candidates are all taken.
    """
    if not candidates:
        return []
    return GRAD_MASKS[kind](candidates, min(count, len(candidates)), generator)


def leaf_gradients(loss: Tensor, path: Unroll) -> list[Tensor]:
    """Return dL/do_i for every unrolled step, each `(B, C, h, w)`, first to last. Frees the graph of `loss`."""
    return list(torch.autograd.grad(loss, [step.output for step in path.steps]))


def replay(
    denoiser: Denoiser,
    path: Unroll,
    gradients: dict[int, Tensor],
    backward: Backward = torch.Tensor.backward,
) -> None:
    """Accumulate `sum_i gradients[i] * do_i/dtheta` in the parameters, one denoiser call at a time.

    A guided denoiser is trained through its conditional prediction: do_i is `scale` times that one's.

    A step whose graph the unroll kept is pulled back through that graph instead, which is then freed: the same gradient, one
    forward pass less.

    Args:
        gradients: position in the unroll -> (scaled) dL/do_i; these steps must have been kept by the unroll.
        backward: the training loop's own, so that loss scaling and accumulation apply.

    Raises:
        ValueError: a step was not kept by the unroll.
    """
    for position, gradient in gradients.items():
        step = path.steps[position]
        if step.graph_output is not None:
            output, step.graph_output = step.graph_output, None
            backward(_scalar_with_gradient(output, gradient))
            continue
        if step.model_input is None:
            raise ValueError(f"step {position} was not kept by the unroll")
        weight, part = parts_of(denoiser)[0]
        # The output is named nowhere, so that its graph is gone before the next call.
        backward(_scalar_with_gradient(call_with_graph(part, step.model_input, step.timestep, step.seed), weight * gradient))


def _scalar_with_gradient(output: Tensor, gradient: Tensor) -> Tensor:
    """Return the scalar whose gradient at `output` is `gradient`."""
    with torch.enable_grad():
        return (output.to(gradient.dtype) * gradient).sum()
