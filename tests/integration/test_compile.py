"""A compiled denoiser: a handful of graphs, however many turns, and the gradient of the one that is not compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host import conventions
from adt_plugin.host.calls import DenoiserCall
from toys import ToyDenoiser, toy_latents, toy_turn

PYTORCHS_OWN = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
Compile = Callable[[nn.Module, CompileCounterWithBackend], nn.Module]
Options = tuple[str | Path, ...]


class Block(nn.Module):
    """Counts no calls, as the toys do: a number that changes is a new graph."""

    def __init__(self) -> None:
        super().__init__()
        toy = ToyDenoiser()
        self.first, self.last = toy.first, toy.last

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + (t.to(x.dtype) / 1000).view(-1, 1, 1, 1)))


class Network(nn.Module):
    """With a conditioning, blocks, and something that depends on the mode, as checkpointing does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        x = x + context.mean(1)[:, :, None, None]
        for block in self.blocks:
            x = x + (block(x, t) if self.training else block(x, t) * 1.0)
        return x


def whole(network: nn.Module, counter: CompileCounterWithBackend) -> nn.Module:
    """As accelerate does it for `--torch_compile`."""
    return torch.compile(network, backend=counter)


def by_block(network: nn.Module, counter: CompileCounterWithBackend) -> nn.Module:
    """As the host's `--compile`."""
    network.blocks = nn.ModuleList([torch.compile(block, backend=counter) for block in network.blocks])  # type: ignore[arg-type]
    return network


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def after_its_backward(turn: AdversarialTurn, call: DenoiserCall, prediction: Tensor, loss: Tensor, latents: Tensor) -> None:
    turn.watch(prediction)
    loss.backward()
    turn(call, latents, unroll_denoiser=call.without_checkpointing)


def instead_of_it(turn: AdversarialTurn, call: DenoiserCall, prediction: Tensor, loss: Tensor, latents: Tensor) -> None:
    turn.measure(loss, prediction)
    turn(call, latents, unroll_denoiser=call.without_checkpointing, loss=loss)


BATCHES = {"low": after_its_backward, "fast": after_its_backward, "joined": instead_of_it}


def batch_with_a_turn(turn: AdversarialTurn, network: nn.Module, number: int) -> None:
    """The host's own call, its backward and a turn; another conditioning in every batch."""
    latents, noise = toy_latents(seed=number), toy_latents(seed=number + 100)
    arguments = (latents + noise, torch.full((2,), 300), torch.full((2, 3, 4), 0.1 * number))
    prediction = network(*arguments)
    call = DenoiserCall.captured(network, arguments, {}, conventions.SD, contextlib.nullcontext)
    BATCHES[turn.config.memory](turn, call, prediction, F.mse_loss(prediction, noise), latents)


@PYTORCHS_OWN
@pytest.mark.parametrize("memory", BATCHES)
@pytest.mark.parametrize(("compiled_as", "most"), [(whole, 4), (by_block, 4)], ids=["whole", "by block"])
def test_turns_make_a_bounded_number_of_graphs_and_the_same_gradient(compiled_as: Compile, most: int, memory: str) -> None:
    """One for the host's call, one for the unroll, one for the replay; a new one for every turn would fall back to eager."""
    counter, plain = CompileCounterWithBackend("eager"), Network()
    compiled = compiled_as(Network(), counter)
    turns = [toy_turn(start_min=1.0, memory=memory) for _ in range(2)]
    frames = []
    for number in range(5):
        batch_with_a_turn(turns[0], compiled, number)
        batch_with_a_turn(turns[1], plain, number)
        frames.append(counter.frame_count)
    assert frames[-1] == frames[0] <= most
    found, expected = (torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (compiled, plain))  # type: ignore[union-attr]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@PYTORCHS_OWN
@pytest.mark.slow
@pytest.mark.parametrize("compiled_as", [whole, by_block], ids=["whole", "by block"])
def test_inductor_gives_the_same_gradient(compiled_as: Compile) -> None:
    counter, plain = CompileCounterWithBackend("inductor"), Network()
    compiled = compiled_as(Network(), counter)
    for network in (compiled, plain):
        turn = toy_turn(start_min=1.0)
        for number in range(2):
            batch_with_a_turn(turn, network, number)
    found, expected = (torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (compiled, plain))  # type: ignore[union-attr]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
