"""Which unrolled steps carry gradient, and the exact replay that makes memory constant.

With the denoiser's input stopped, dL/dtheta = sum over masked i of (dL/do_i) (do_i/dtheta). The unroll keeps no graph
through the network; the vectors dL/do_i come from `leaf_gradients`, and each masked step is then run once more with
gradient (`replay`). Peak memory is that of one denoiser call, whatever the number of steps (method.md, 'exact replay').
Where memory allows, the unroll keeps the masked steps' graphs (`--adt_memory fast`), and nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adt_plugin.core.diffusion.sampling import Denoiser, Unroll, call_joined, parts_of


def _random_mask(candidates: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(candidates), generator=generator)[:count]
    return sorted(candidates[int(i)] for i in order)


def _even_mask(candidates: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """Evenly spaced with a random offset (DRTune, arXiv 2405.00760)."""
    stride = len(candidates) / count
    offset = float(torch.rand((), generator=generator)) * stride
    return [candidates[min(int(offset + i * stride), len(candidates) - 1)] for i in range(count)]


MASKS: dict[str, Callable[[Sequence[int], int, torch.Generator], list[int]]] = {
    "random": _random_mask,
    "even": _even_mask,
    "last": lambda candidates, count, generator: list(candidates[-count:]),
    "all": lambda candidates, count, generator: list(candidates),
}


def choose_mask(kind: str, candidates: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """The subset M of the unrolled positions that carries gradient, in the order of the unroll.

    Args:
        kind: a key of `MASKS`.
        candidates: positions that may be chosen, first to last.
        count: K; fewer candidates are all taken.
    """
    if not candidates:
        return []
    return MASKS[kind](candidates, min(count, len(candidates)), generator)


def leaf_gradients(loss: Tensor, path: Unroll) -> list[Tensor]:
    """dL/do_i for every unrolled step, each `(B, C, h, w)`, first to last. Frees the graph of `loss`."""
    return list(torch.autograd.grad(loss, [step.output for step in path.steps]))


def replay(
    denoiser: Denoiser,
    path: Unroll,
    gradients: dict[int, Tensor],
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> None:
    """Accumulate `sum_i gradients[i] * do_i/dtheta` in the parameters, one denoiser call at a time (two for a guided one).

    A step whose graph the unroll kept is pulled back through that graph instead, which is then freed: the same gradient, one
    forward less.

    Args:
        gradients: position in the unroll -> (scaled) dL/do_i; these steps must have been kept by the unroll.
        backward: runs the backward pass of a scalar; the host's own, so that loss scaling and accumulation apply.
    """
    for position, gradient in gradients.items():
        step = path.steps[position]
        if step.joined is not None:
            joined, step.joined = step.joined, None
            backward(_pulled_back(joined, gradient))
            continue
        if step.model_input is None:
            raise ValueError(f"step {position} was not kept by the unroll")
        for weight, part in parts_of(denoiser):
            backward(_pulled_back(call_joined(part, step.model_input, step.timestep, step.seed), weight * gradient))


def _pulled_back(output: Tensor, gradient: Tensor) -> Tensor:
    """The scalar whose gradient at `output` is `gradient`."""
    with torch.enable_grad():
        return (output.to(gradient.dtype) * gradient).sum()
