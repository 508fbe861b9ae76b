"""The make-believe device itself: it must fail where a real one would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from accelerator.device import watched


@pytest.mark.parametrize(
    "mixed",
    [
        lambda a, b: a + b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: nn.functional.linear(a, b),
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, b: b.add_(a),
    ],
)
def test_two_devices_do_not_mix(card: torch.device, mixed: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mixed(torch.ones(3, 3, device=card), torch.ones(3, 3))


def test_a_number_from_the_cpu_may_come_along(card: torch.device) -> None:
    with watched() as traffic:
        product = torch.tensor(2.0) * torch.ones(3, device=card)
    assert product.device == card and not traffic.copies and product.tolist() == [2.0] * 3


WAITING: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "item": (lambda x: x.sum().item(), 1),
    "bool": (lambda x: bool((x > 0).all()), 1),
    "float": (lambda x: float(x[0]), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "equal": (lambda x: torch.equal(x, x), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "mask": (lambda x: x[x > 0], 1),
    "list as index": (lambda x: x[[0, 1]], 1),
    "CPU tensor as index": (lambda x: x[torch.tensor([0, 1])], 1),
    "new from a number": (lambda x: torch.tensor(1.0, device=x.device), 1),
    "to the card": (lambda x: torch.ones(2).to(x.device), 1),
    "to the card without waiting": (lambda x: torch.ones(2).to(x.device, non_blocking=True), 0),
    "filled": (lambda x: torch.full((2,), 3.0, device=x.device), 0),
    "slice": (lambda x: x[1:].sum() + x[0], 0),
    "precision": (lambda x: x.to(torch.bfloat16).float(), 0),
    "within the card": (lambda x: torch.empty_like(x).copy_(x), 0),
}


@pytest.mark.parametrize(("call", "waits"), WAITING.values(), ids=WAITING)
def test_waits_are_counted(card: torch.device, call: Callable[[Tensor], object], waits: int) -> None:
    tensor = torch.ones(3).to(card)
    with watched() as traffic:
        call(tensor)
    assert traffic.waits.total() == waits


def test_bytes_are_counted_in_both_directions(card: torch.device) -> None:
    with watched() as traffic:
        torch.ones(5).to(card).to(torch.bfloat16).cpu()
    assert (traffic.to_card.total(), traffic.from_card.total(), traffic.copies.total()) == (20, 10, 2)


def test_what_is_fetched_without_waiting_is_refused(card: torch.device) -> None:
    with pytest.raises(RuntimeError, match="before it has arrived"):
        torch.ones(3, device=card).to("cpu", non_blocking=True)


def test_a_generator_belongs_to_one_device(card: torch.device) -> None:
    with pytest.raises(RuntimeError, match="Expected a 'card' device type for generator"):
        torch.randn(3, device=card, generator=torch.Generator())
    first, second = (torch.randn(3, device=card, generator=torch.Generator(card).manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_card_draws_from_a_state_of_its_own(card: torch.device) -> None:
    torch.manual_seed(4)
    cpu, states = torch.get_rng_state(), torch.card.get_rng_state_all()
    first = nn.functional.dropout(torch.ones(100, device=card))
    assert torch.equal(torch.get_rng_state(), cpu) and not torch.equal(torch.card.get_rng_state(), states[0])
    torch.card.set_rng_state_all(states)
    assert torch.equal(nn.functional.dropout(torch.ones(100, device=card)), first)


def test_a_module_moves_there_and_back_with_its_parameters(card: torch.device) -> None:
    layer = nn.Linear(3, 3)
    weight, values = layer.weight, layer.weight.detach().clone()
    assert layer.to(card).weight is weight and weight.device == card
    assert layer.to("cpu").weight is weight and torch.equal(weight, values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_gradients(card: torch.device, dtype: torch.dtype) -> None:
    layer = nn.Conv2d(2, 3, 3).to(card)
    with torch.autocast(card.type, dtype):
        out = layer(torch.randn(1, 2, 8, 8, device=card))
    out.float().sum().backward()
    assert out.dtype == dtype and layer.weight.grad.dtype == torch.float32 and layer.weight.grad.device == card
