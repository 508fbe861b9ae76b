"""Two real processes of the core: what they compute together is what one computes on the joined batch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from adt_plugin.core.diffusion.unroll import Unroll
from adt_plugin.core.distributed import all_reduce_gradients, all_reduce_norm, rank, world_size
from adt_plugin.core.run import state
from adt_plugin.core.run.health import BadTurnsError, Health
from adt_plugin.core.turn import AdversarialTurn
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn

PROCESSES = 2


def in_process(rank: int, folder: str) -> None:
    """Every part of `WORK` in one process group: starting the processes takes longer than all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    results = {name: function(rank, *arguments) for name, (function, arguments) in WORK.items()}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By the names of `WORK`: what it returned in the first process and in the second."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(in_process, (str(folder),), nprocs=PROCESSES)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES))
    return {name: (first[name], second[name]) for name in WORK}


def heads_of(turn: AdversarialTurn) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in turn.discriminator.state_dict().items()}


# The sum of gradients

STEPS, BATCH = 3, 4


def exact_turn(**options: object) -> AdversarialTurn:
    """In float64, without augmentation, penalty and history, so that the only draws are the path's and the noise."""
    turn = toy_turn(**{"steps": 4, "start_min": 0.5, "disc_penalty": 0.0, "disc_steps": 1} | options)
    turn.discriminator.double().augment.chosen = []
    return turn


class Part:
    """Rank r's part of a joint batch; a batch of one process is the whole.

    The noise of a part is what the joint draw has there: PyTorch draws whole blocks of 16 numbers one after the other.
    """

    def __init__(self, rank: int, processes: int) -> None:
        self.rank, self.size = rank, BATCH // processes

    def of(self, joint: Tensor) -> Tensor:
        return joint[self.rank * self.size : (self.rank + 1) * self.size]

    def seed_noise(self, turn: AdversarialTurn, seed: int, like: Tensor) -> None:
        turn.noise_generator.manual_seed(seed)
        for _ in range(self.rank):
            torch.randn(like.shape, generator=turn.noise_generator, dtype=like.dtype)


def micro_step(turn: AdversarialTurn, net: nn.Module, part: Part, step: int, micro_steps: int) -> float:
    """The host's forward and backward, then a turn, both divided by the number of micro-steps; the turn's gradient norm."""
    clean, noise = (part.of(toy_latents(BATCH, seed=100 * step + offset, dtype=torch.float64)) for offset in (1, 2))
    prediction = net(clean + noise, torch.full((len(clean),), 300))
    part.seed_noise(turn, step, clean)
    return WAYS[turn.config.memory](turn, net, clean, prediction, nn.functional.mse_loss(prediction, noise), micro_steps)


def separately(
    turn: AdversarialTurn, net: nn.Module, clean: Tensor, prediction: Tensor, loss: Tensor, micro_steps: int
) -> float:
    """The replay goes through the wrapper, which counts passes; the unroll does not."""
    turn.watch(prediction, loss_scale=1 / micro_steps)
    (loss / micro_steps).backward()
    unwrapped = getattr(net, "module", net)
    return turn(net, clean, backward=lambda loss: (loss / micro_steps).backward(), unroll_denoiser=unwrapped).grad_norm


def in_one_pass(
    turn: AdversarialTurn, net: nn.Module, clean: Tensor, prediction: Tensor, loss: Tensor, micro_steps: int
) -> float:
    """The wrapper sees the host's own call and one backward pass."""
    turn.measure(loss, prediction, loss_scale=1 / micro_steps)
    unwrapped = getattr(net, "module", net)
    return turn(unwrapped, clean, backward=lambda loss: (loss / micro_steps).backward(), loss=loss).grad_norm


WAYS = {"low": separately, "joined": in_one_pass, "fast": in_one_pass}


def train(rank: int, processes: int, wrap: str, micro_steps: int, options: dict[str, object]) -> dict[str, Any]:
    """Some steps of SGD; the gradients and norms of each, and the heads at the end."""
    turn, net, part = exact_turn(**options), ToyDenoiser(dtype=torch.float64), Part(rank, processes)
    wrapped: Any = net
    if wrap.startswith("ddp"):
        settings = {"gradient_as_bucket_view": wrap == "ddp, bucket views", "static_graph": wrap == "ddp, static graph"}
        wrapped = nn.parallel.DistributedDataParallel(net, **settings)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    gradients, norms, of_heads = [], [], []
    turn.optimizer.register_step_pre_hook(
        lambda *args: of_heads.append(torch.cat([p.grad.flatten() for p in turn.discriminator.parameters()]))
    )
    for step in range(STEPS):
        for micro in range(micro_steps):
            if wrap.startswith("ddp"):
                wrapped.require_backward_grad_sync = micro == micro_steps - 1  # as its no_sync
            norms.append(micro_step(turn, wrapped, part, step * micro_steps + micro, micro_steps))
        if wrap == "by hand":  # as the host's all_reduce_network
            all_reduce_gradients(net.parameters())
        gradients.append(net.gradients().clone())
        optimizer.step()
        optimizer.zero_grad()
    return {"gradients": gradients, "norms": norms, "heads": heads_of(turn), "gradients_of_heads": torch.stack(of_heads)}


WRAPS = [
    ("ddp", "cap", "low"),
    ("ddp, bucket views", "ratio", "low"),
    ("by hand", "cap", "low"),
    ("by hand", "none", "low"),
    ("ddp", "cap", "joined"),
    ("ddp", "cap", "fast"),  # graphs kept, and pulled back with the loss
    ("by hand", "cap", "joined"),
]
CELLS = [(*way, micro_steps) for way in WRAPS for micro_steps in (1, 2)]
CELLS += [("ddp, static graph", "ratio", "joined", 1)]  # a first pass without reduction fails inside PyTorch, turn or not


def balanced(balance: str, memory: str = "low") -> dict[str, object]:
    return {"balance": balance, "weight": 0.5, "max_grad_ratio": 100.0, "memory": memory}


@pytest.mark.parametrize(("wrap", "balance", "memory", "micro_steps"), CELLS)
def test_gradients_are_those_of_one_process_on_the_joined_batch(
    results: dict[str, tuple[Any, Any]], wrap: str, balance: str, memory: str, micro_steps: int
) -> None:
    first, second = results[f"{wrap}, {balance}, {memory}, {micro_steps}"]
    alone = train(0, 1, "alone", micro_steps, balanced(balance))
    assert all(norm > 0 for norm in alone["norms"])
    assert first["norms"] == second["norms"] == pytest.approx(alone["norms"], rel=1e-6)  # reports are in float32
    for name in first["heads"]:
        assert torch.equal(first["heads"][name], second["heads"][name]), name
        torch.testing.assert_close(first["heads"][name], alone["heads"][name], rtol=1e-7, atol=1e-9)
    assert relative_error(first["gradients_of_heads"][-1], alone["gradients_of_heads"][-1]) < 1e-10
    for ours, theirs, expected in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert torch.equal(ours, theirs)
        assert relative_error(ours, expected) < 1e-10


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# Draws and reports


def walk(rank: int) -> dict[str, Any]:
    turn, net = toy_turn(steps=8), ToyDenoiser()
    reports = []
    for step in range(4):
        latents = toy_latents(seed=10 * step + rank)
        diffusion_backward(turn, net, latents)
        reports.append(turn(net, latents))
    shared = [(r.start, r.grad_positions, r.loss_d, r.loss_g, r.grad_norm, r.step_grad_norms) for r in reports]
    return {"shared": shared, "pairs": [r.scores for r in reports], "heads": heads_of(turn)}


def test_two_processes_walk_the_same_path_on_other_images_and_keep_the_same_heads(
    results: dict[str, tuple[Any, Any]],
) -> None:
    first, second = results["walk"]
    assert first["shared"] == second["shared"]
    assert not any(torch.equal(a, b) for a, b in zip(first["pairs"], second["pairs"], strict=True))
    assert all(torch.equal(first["heads"][name], second["heads"][name]) for name in first["heads"])


def draw(rank: int) -> dict[str, Any]:
    """A turn on the same latents in both processes whose path ends where it began, as generated and as real image."""
    turn, drawn = toy_turn(warmup=30, decode_crop=0), []  # so early in the warm-up nothing is measured

    def note(sampler: Any, clean: Tensor, noise: Tensor, steps: int, start: int) -> Tensor:
        sampler.prepare(steps, start)
        drawn.append(noise)
        return clean

    turn.noised_start, turn.unroll = note, lambda denoiser, sampler, latents, *rest: Unroll(latents, [])
    score, scores = turn.discriminator.scores, []

    def note_scores(features: Any) -> tuple[Tensor, Tensor]:
        real, gen = score(features)
        scores.append(gen.detach())
        return real, gen

    turn.discriminator.scores = note_scores
    for _ in range(3):
        turn(ToyDenoiser(), toy_latents())
    return {"noise": torch.stack(drawn), "scores": torch.stack(scores), "path": turn.path_generator.get_state()}


def test_two_processes_draw_their_own_noise_and_their_own_augmentation(results: dict[str, tuple[Any, Any]]) -> None:
    first, second = results["draw"]
    assert torch.equal(first["path"], second["path"])
    assert (first["noise"] - second["noise"]).abs().mean() > 0.5
    assert not (first["scores"] == second["scores"]).any()  # the same images and heads: other draws of their augmentation


# Faults in one process alone


class FaultyDenoiser(ToyDenoiser):
    """Returns NaN in every unroll of the given turns."""

    def __init__(self, turn: AdversarialTurn, bad: tuple[int, ...]) -> None:
        super().__init__()
        object.__setattr__(self, "turn", turn)
        self.bad = bad

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output = super().forward(x, t)
        faulty = self.turn.turns + 1 in self.bad and not torch.is_grad_enabled()
        return output * float("nan") if faulty else output


def train_with_a_fault(rank: int, where: str) -> dict[str, Any]:
    """Five turns through DistributedDataParallel; the second process meets NaN in the third."""
    turn = toy_turn()
    net = FaultyDenoiser(turn, bad=(3,) if (rank, where) == (1, "denoiser") else ())
    decode, wrapped = turn.decode, nn.parallel.DistributedDataParallel(net)
    if (rank, where) == (1, "real image"):
        turn.decode = lambda x: decode(x) * (float("nan") if turn.turns == 2 and x.grad_fn is None else 1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    skipped, calls, heads = [], [], []
    for step in range(5):
        latents = toy_latents(seed=10 * step + rank)
        diffusion_backward(turn, wrapped, latents)
        skipped.append(turn(wrapped, latents, unroll_denoiser=net).skipped)
        optimizer.step()
        optimizer.zero_grad()
        calls.append(net.calls)
        heads.append(heads_of(turn))
    return {"skipped": skipped, "calls": calls, "heads": heads, "weights": dict(net.state_dict())}


@pytest.mark.parametrize("where", ["denoiser", "real image"])
def test_a_fault_in_one_process_drops_the_turn_in_both(results: dict[str, tuple[Any, Any]], where: str) -> None:
    first, second = results[where]
    assert first["skipped"] == second["skipped"] == [False, False, True, False, False]
    assert first["calls"] == second["calls"]
    for ours, theirs in zip(first["heads"], second["heads"], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    trained = [name for name in first["heads"][0] if "standardize" not in name]
    assert all(torch.equal(first["heads"][1][name], first["heads"][2][name]) for name in trained)
    assert not all(torch.equal(first["heads"][2][name], first["heads"][3][name]) for name in trained)
    for name, weight in first["weights"].items():
        assert weight.isfinite().all() and torch.equal(weight, second["weights"][name])


def end_by_faults(rank: int) -> tuple[int, str]:
    """The turn after which the run ends, and the diagnosis."""
    turn, watch = toy_turn(), Health(max_bad_turns=2)
    net = FaultyDenoiser(turn, bad=(2, 4, 5) if rank == 1 else ())
    try:
        for _ in range(8):
            diffusion_backward(turn, net, toy_latents(seed=rank))
            watch.examine(turn(net, toy_latents(seed=rank)))
    except BadTurnsError as error:
        return turn.turns, str(error)
    return turn.turns, "went on"


def test_both_processes_end_the_run_together_and_name_what_one_of_them_met(results: dict[str, tuple[Any, Any]]) -> None:
    first, second = results["end"]
    assert first == second
    assert first[0] == 5 and "2 turns in a row were not finite, first in generated images" in first[1]


# Resuming


def train_from(rank: int, resumed: state.State | None) -> tuple[dict[str, Any], AdversarialTurn]:
    """Three turns; what they began with and what the heads came to."""
    turn, net = toy_turn(), ToyDenoiser()
    if resumed is not None:
        state.restore(turn, resumed)
    found = {"turns": turn.turns, "path": turn.path_generator.get_state(), "noise": turn.noise_generator.get_state()}
    found |= {"heads": heads_of(turn), "diffusion": turn.balance.diffusion.value}
    for step in range(3):
        diffusion_backward(turn, net, toy_latents(seed=10 * step + rank))
        turn(net, toy_latents(seed=10 * step + rank))
    return found | {"after": heads_of(turn)}, turn


def resume(rank: int) -> dict[str, Any]:
    """A run, and one that resumes from what the first process alone has saved."""
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder)  # the first process's
        _, turn = train_from(rank, None)
        if rank == 0:
            state.write(state.capture(turn, turn.config), Path(own))
        dist.barrier()
        resumed = state.read(Path(folder[0]), turn.config, turn.discriminator)
        dist.barrier()
    return train_from(rank, resumed)[0]


def test_a_state_of_the_first_process_resumes_both(results: dict[str, tuple[Any, Any]]) -> None:
    first, second = results["resume"]
    assert first["turns"] == second["turns"] == 3
    assert torch.equal(first["path"], second["path"]) and not torch.equal(first["noise"], second["noise"])
    assert torch.equal(first["diffusion"], second["diffusion"]) and first["diffusion"] > 0
    for part in ("heads", "after"):
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])


WORK: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    f"{wrap}, {balance}, {memory}, {micro_steps}": (train, (PROCESSES, wrap, micro_steps, balanced(balance, memory)))
    for wrap, balance, memory, micro_steps in CELLS
}
WORK |= {where: (train_with_a_fault, (where,)) for where in ("denoiser", "real image")}
WORK |= {"walk": (walk, ()), "draw": (draw, ()), "end": (end_by_faults, ()), "resume": (resume, ())}


# Alone


def test_alone_a_process_is_the_first_of_one() -> None:
    assert (rank(), world_size()) == (0, 1)


def test_alone_there_is_nothing_to_average_and_no_norm_to_join() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    all_reduce_gradients([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
    norm = torch.tensor(0.1)
    assert all_reduce_norm(norm) is norm
