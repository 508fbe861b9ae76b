"""A compiled denoiser: a handful of graphs, however many turns, and the gradient of the one that is not compiled.

First a network in miniature, then the host's own two ways: `--torch_compile`, and Anima's `--compile` block by block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from adtruns import assert_same_weights, assert_trained_with_adt, flat_weights, observed, slow
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from adt_plugin.core.diffusion.denoiser import call_seeded, call_with_graph
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host import conventions
from adt_plugin.host.calls import DenoiserCall
from tinyhost.families import family_of
from tinyhost.models import TinyModel
from tinyhost.run import SCRIPT, TinyRun
from toys import ToyDenoiser, toy_latents, toy_turn

PYTORCHS_OWN = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
INDUCTORS_OWN = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
Compile = Callable[[nn.Module, CompileCounterWithBackend], nn.Module]
Options = tuple[str | Path, ...]

COMPILING = Path(__file__).with_name("compiling.py")
ANIMA = "anima_train_network.py"
FOUR_STEPS = ("--max_train_steps", "4")
LONG = 1500
"""Seconds that a run may take which compiles: one of ten seconds becomes one of a minute."""


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
@INDUCTORS_OWN
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


class Dropping(Network):
    """Drops in eval mode as well, as a LoRA does, which is no part of the network that the unroll puts into that mode."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return F.dropout(super().forward(x, t, context), 0.5)


@INDUCTORS_OWN
@pytest.mark.parametrize("backend", ["eager", slow("inductor")])
def test_a_replay_draws_the_dropout_of_the_unroll(backend: str) -> None:
    """They are two graphs, and inductor draws its random numbers itself."""
    network = torch.compile(Dropping(), backend=backend)
    arguments = (toy_latents(), torch.full((2,), 300), torch.ones(2, 3, 4))
    call = DenoiserCall.captured(network, arguments, {}, conventions.SD, contextlib.nullcontext)
    with torch.no_grad():
        walked, other = (call_seeded(call.without_checkpointing, toy_latents(), torch.tensor(300), seed) for seed in (1, 2))
    replayed = call_with_graph(call, toy_latents(), torch.tensor(300), 1)
    torch.testing.assert_close(replayed.detach(), walked)
    assert float((walked == 0).float().mean()) > 0.2 and not torch.equal(walked == 0, other == 0)


# Through the host


WHOLE = ("--torch_compile", "--dynamo_backend", "eager")
BY_BLOCK = ("--compile", "--compile_backend", "eager")


@pytest.mark.parametrize(
    ("script", "compiled_by", "options"),
    [
        (ANIMA, BY_BLOCK, ()),
        slow(SCRIPT, WHOLE, ()),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_compiled_run_has_the_weights_of_the_one_that_is_not(
    host_dir: Path, run_tiny: TinyRun, tiny_model: TinyModel, tiny_images: Path, adt_options: Options, tmp_path: Path,
    script: str, compiled_by: Options, options: Options, cell: Callable[..., None],
) -> None:  # fmt: skip
    """Bit for bit; `compiling.py` ends a run in which something is compiled too often to be compiled at all, and counts the
    rest: no graph is new after the first turn that trains the denoiser, which is the second."""
    cell(script, " ".join(map(str, (*compiled_by, *options))))
    skip_what_the_host_lacks(host_dir, compiled_by)
    given, places = (*FOUR_STEPS, *adt_options, *options), (host_dir, tiny_model(family_of(script)), tiny_images, tmp_path)
    compiled, graphs = observed(COMPILING, script, (*given, *compiled_by), *places, timeout=LONG)
    assert_trained_with_adt(compiled, turns=4)
    assert 0 < graphs[0] <= graphs[1] == graphs[2] == graphs[3]
    assert_same_weights(compiled, run_tiny(*given, script=script))


@pytest.mark.slow
def test_inductor_trains_through_the_host(
    host_dir: Path, run_tiny: TinyRun, tiny_model: TinyModel, tiny_images: Path, adt_options: Options, tmp_path: Path,
    cell: Callable[..., None],
) -> None:  # fmt: skip
    """The backend that people compile with: no new graph after the second turn, and the weights of the plain run in rounding.

    With SGD, since Adam makes a whole step of a gradient's rounding error. `--torch_compile` of a whole U-Net compiles for
    longer on a CPU than a test may take.
    """
    compiled_by = ("--compile", "--compile_backend", "inductor")
    cell(ANIMA, " ".join(compiled_by))
    skip_what_the_host_lacks(host_dir, compiled_by)
    given = (*FOUR_STEPS, *adt_options, "--optimizer_type", "SGD", "--learning_rate", "0.1")
    places = (host_dir, tiny_model(family_of(ANIMA)), tiny_images, tmp_path)
    compiled, graphs = observed(COMPILING, ANIMA, (*given, *compiled_by), *places, timeout=LONG)
    assert_trained_with_adt(compiled, turns=4)
    assert 0 < graphs[0] <= graphs[1] == graphs[2] == graphs[3]
    found, expected = (flat_weights(run) for run in (compiled, run_tiny(*given, script=ANIMA)))
    assert (found - expected).norm() < 1e-4 * expected.norm()


def skip_what_the_host_lacks(host_dir: Path, options: Options) -> None:
    if "--compile" in options and not (host_dir / "library" / "compile_utils.py").is_file():
        pytest.skip("this version of sd-scripts compiles no block by itself")
