"""One backward pass for the diffusion loss and the turn: the replay's gradient, and what only one pass can do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from test_gradient_path import SCHEDULES, START, STEPS, loss_of, relative_error, sampler_for
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adt_plugin.core.diffusion.denoiser import Denoiser, Guided
from adt_plugin.core.diffusion.gradient_path import Backward, leaf_gradients, replay
from adt_plugin.core.diffusion.passes import JoinedPass, OwnPasses, Passes
from adt_plugin.core.diffusion.unroll import noised_start, unroll
from adt_plugin.core.out_of_memory import OUT_OF_MEMORY, TurnOutOfMemoryError
from adt_plugin.core.report import TurnReport
from adt_plugin.core.rng import preserved_rng
from adt_plugin.core.run import rehearsal
from adt_plugin.core.run.rehearsal import Headroom
from adt_plugin.core.turn import AdversarialTurn
from toys import ToyDenoiser, toy_decode, toy_latents, toy_turn

ROUNDING = 1e-10
Bind = Callable[[ToyDenoiser], Denoiser]


def diffusion_loss(net: ToyDenoiser, latents: Tensor) -> tuple[Tensor, Tensor]:
    """A host's prediction and loss; the noise is the same at every call."""
    noise = toy_latents(len(latents), seed=9, dtype=latents.dtype)
    prediction = net(latents + noise, torch.full((len(latents),), 300))
    return prediction, F.mse_loss(prediction, noise)


def path_gradient(
    name: str,
    kind: str,
    dropout: float,
    passes_of: Callable[[Tensor], Passes],
    keep: bool = False,
    bind: Bind = lambda net: net,
) -> Tensor:
    """`p.grad` after the diffusion loss and two trained steps."""
    net, sampler = ToyDenoiser(dropout, torch.float64), sampler_for(name, kind)
    start = noised_start(sampler, toy_latents(dtype=torch.float64), toy_latents(seed=4, dtype=torch.float64), STEPS, START)
    torch.manual_seed(0)  # of the dropout in the diffusion loss
    passes = passes_of(diffusion_loss(net, toy_latents(dtype=torch.float64))[1])
    denoiser = bind(net)
    with preserved_rng():
        path = unroll(denoiser, sampler, start, list(range(START)), [1, 4], True, denoiser if keep else None)
        gradients = leaf_gradients(loss_of(path.latents), path)
        replay(denoiser, path, {i: gradients[i] for i in (1, 4)}, passes.add)
    passes.finish()
    return net.gradients()


def own(loss: Tensor) -> Passes:
    loss.backward()
    return OwnPasses(Tensor.backward)


def joined(loss: Tensor) -> Passes:
    return JoinedPass(Tensor.backward, loss)


@pytest.mark.parametrize("keep", [False, True], ids=["run again", "kept"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("name", "kind"), SCHEDULES)
def test_one_pass_gives_the_gradient_of_the_replay(name: str, kind: str, dropout: float, keep: bool) -> None:
    expected = path_gradient(name, kind, dropout, own)
    assert relative_error(path_gradient(name, kind, dropout, joined, keep), expected) < ROUNDING
    alone = ToyDenoiser(dropout, torch.float64)
    torch.manual_seed(0)
    diffusion_loss(alone, toy_latents(dtype=torch.float64))[1].backward()
    assert relative_error(alone.gradients(), expected) > 1e-2  # the turn's share is not small


@pytest.mark.parametrize("keep", [False, True], ids=["run again", "kept"])
def test_guidance_is_part_of_the_one_pass(keep: bool) -> None:
    def guided(net: ToyDenoiser) -> Denoiser:
        return Guided(lambda x, t: net(x, t), lambda x, t: net(x + 0.5, t), 3.0)

    expected = path_gradient("ddim", "epsilon", 0.3, own, bind=guided)
    assert relative_error(path_gradient("ddim", "epsilon", 0.3, joined, keep, guided), expected) < ROUNDING


def test_the_factors_of_the_loops_pass_act_on_the_sum() -> None:
    """A gradient scaler's, and 1 / accumulation steps."""

    def scaled(loss: Tensor) -> None:
        (loss * 1024 / 4).backward()

    expected = path_gradient("euler", "v_prediction", 0.0, own)
    found = path_gradient("euler", "v_prediction", 0.0, lambda loss: JoinedPass(scaled, loss))
    assert relative_error(found, 256 * expected) < ROUNDING


# Whole turns


class Loop:
    """A training loop of one micro-batch, either way; the backward passes it made, and the parameters' hooks that fired."""

    def __init__(self, memory: str, dropout: float = 0.0, **options: object) -> None:
        self.net = ToyDenoiser(dropout, torch.float64)
        self.turn = exact(memory=memory, **options)
        self.passes: list[Tensor] = []
        self.fired = 0
        for parameter in self.net.parameters():
            parameter.register_post_accumulate_grad_hook(lambda parameter: self._fire())

    def _fire(self) -> None:
        self.fired += 1

    def backward(self, loss: Tensor) -> None:
        self.passes.append(loss.detach())
        (loss * 8 / 2).backward()  # a scaler's 8, two micro-batches

    def micro_batch(self, factor: float = 1.0) -> TurnReport:
        latents = toy_latents(dtype=torch.float64)
        torch.manual_seed(0)
        prediction, loss = diffusion_loss(self.net, latents)
        return MICRO_BATCHES[self.turn.config.memory](self, prediction, factor * loss, latents)

    def after_its_backward(self, prediction: Tensor, loss: Tensor, latents: Tensor) -> TurnReport:
        self.turn.watch(prediction, 8 / 2)
        self.backward(loss)
        return self.turn(self.net, latents, backward=self.backward)

    def instead_of_it(self, prediction: Tensor, loss: Tensor, latents: Tensor) -> TurnReport:
        self.turn.measure(loss, prediction, 8 / 2)
        return self.turn(self.net, latents, backward=self.backward, loss=loss)


MICRO_BATCHES = {"low": Loop.after_its_backward, "fast": Loop.after_its_backward, "joined": Loop.instead_of_it}


def exact(**options: object) -> AdversarialTurn:
    """In float64, without augmentation: equal but for the order of sums."""
    turn = toy_turn(**{"grad_steps": 2, "start_min": 1.0} | options)
    turn.discriminator.double().augment.chosen = []
    return turn


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("balance", ["ratio", "cap", "none"])
def test_some_joined_turns_are_those_after_the_loops_pass(balance: str, dropout: float) -> None:
    loops = [Loop(memory, dropout, balance=balance) for memory in ("low", "joined")]
    for _ in range(3):
        reports = [loop.micro_batch() for loop in loops]  # the gradients accumulate
        assert reports[1].grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-6)
        assert reports[1].grad_norm_diffusion == pytest.approx(reports[0].grad_norm_diffusion, rel=1e-6)
        assert relative_error(loops[1].net.gradients(), loops[0].net.gradients()) < ROUNDING
    heads = [torch.cat([p.detach().flatten() for p in loop.turn.discriminator.parameters()]) for loop in loops]
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-9, atol=1e-12)


def test_every_parameters_hook_fires_once_with_the_sum() -> None:
    loop, separate = Loop("joined"), Loop("low")
    loop.micro_batch()
    separate.micro_batch()
    parameters = len(list(loop.net.parameters()))
    assert (len(loop.passes), loop.fired) == (1, parameters)
    assert (len(separate.passes), separate.fired) == (1 + 2, 3 * parameters)


@pytest.mark.parametrize("options", [{"warmup": 3}, {"weight": 0.0}])
def test_without_a_gradient_the_one_pass_is_the_loops_own(options: dict[str, float]) -> None:
    loop, alone = Loop("joined", 0.3, **options), ToyDenoiser(0.3, torch.float64)
    loop.micro_batch()
    torch.manual_seed(0)
    (diffusion_loss(alone, toy_latents(dtype=torch.float64))[1] * 8 / 2).backward()
    assert torch.equal(loop.net.gradients(), alone.gradients()) and loop.turn.turns == 1


def test_a_turn_that_is_not_finite_leaves_the_loops_own_pass() -> None:
    """Dropped on both sides, and before the one pass."""
    loop, alone = Loop("joined"), ToyDenoiser(dtype=torch.float64)
    loop.turn.decode = lambda latents: toy_decode(latents) * float("nan")
    before = [p.detach().clone() for p in loop.turn.discriminator.parameters()]
    assert loop.micro_batch().skipped
    (diffusion_loss(alone, toy_latents(dtype=torch.float64))[1] * 8 / 2).backward()
    assert torch.equal(loop.net.gradients(), alone.gradients())
    assert all(torch.equal(a, b) for a, b in zip(before, loop.turn.discriminator.parameters(), strict=True))


def test_the_heads_wait_for_the_one_pass_to_learn_of_an_overflow() -> None:
    loop, seen = Loop("joined"), []

    def overflowed() -> bool:
        seen.append(float(loop.net.gradients().norm()))
        return True

    heads = list(loop.turn.discriminator.score.heads.parameters())
    before = [parameter.detach().clone() for parameter in heads]
    prediction, loss = diffusion_loss(loop.net, toy_latents(dtype=torch.float64))
    loop.turn.measure(loss, prediction)
    loop.turn(loop.net, toy_latents(dtype=torch.float64), backward=loop.backward, loss=loss, overflowed=overflowed)
    assert len(seen) == 1 and seen[0] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, heads, strict=True))


def test_the_one_pass_draws_from_the_loops_own_random_state() -> None:
    """As an optimizer inside the pass that rounds at random: what it draws is what it would draw without a turn."""
    drawn = []
    for memory in ("joined", "low"):
        loop = Loop(memory)
        loop.net.last.bias.register_post_accumulate_grad_hook(lambda parameter: drawn.append(torch.rand(())))
        loop.micro_batch()
    assert torch.equal(drawn[0], drawn[1])  # of the joined pass, and of the loop's own


def test_the_diffusion_gradient_is_measured_without_the_network() -> None:
    turn, net = exact(), ToyDenoiser(dtype=torch.float64)
    prediction, loss = diffusion_loss(net, toy_latents(dtype=torch.float64))
    turn.measure(loss, prediction, 1024.0)
    assert all(parameter.grad is None for parameter in net.parameters())
    (gradient,) = torch.autograd.grad(loss, [prediction])
    torch.testing.assert_close(turn.balance.diffusion.value, gradient.norm())


def test_small_gradients_of_half_precision_are_measured_scaled() -> None:
    turn, prediction = exact(), torch.full((1,), 1.0, dtype=torch.float16, requires_grad=True)
    turn.measure(prediction.sum() * torch.tensor(1e-5, dtype=torch.float32) * 1e-4, prediction, 2.0**16)
    torch.testing.assert_close(turn.balance.diffusion.value, torch.tensor(1e-9), rtol=1e-2, atol=0)


def test_without_the_loss_there_is_nothing_to_join() -> None:
    turn, net = toy_turn(memory="joined"), ToyDenoiser()
    with pytest.raises(ValueError, match="--adt_memory joined needs the diffusion loss"):
        turn(net, toy_latents())


# What only one pass can do


class Encoder(nn.Module):
    """A text encoder: the conditioning of every call of a batch, from one call of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.weight * tokens).view(1, 4, 1, 1)


def conditioned(net: ToyDenoiser, condition: Tensor) -> Denoiser:
    return lambda x, t: net(x + condition, t)


def by_full_autograd(net: ToyDenoiser, encoder: Encoder, sampler: object, latents: Tensor, mask: list[int]) -> None:
    """One graph of everything; only the inputs x_i are cut."""
    condition = encoder(torch.arange(4.0))
    loss = diffusion_loss(conditioned(net, condition), latents)[1]  # type: ignore[arg-type]
    for position, timestep in enumerate(sampler.timesteps[-START:]):  # type: ignore[attr-defined]
        output = conditioned(net, condition)(latents.detach(), timestep.expand(len(latents)))
        latents = sampler.step(output if position in mask else output.detach(), timestep, latents)  # type: ignore[attr-defined]
    (loss + loss_of(latents)).backward()


@pytest.mark.parametrize("keep", [False, True], ids=["run again", "kept"])
def test_a_text_encoder_gets_the_gradient_of_every_trained_step(keep: bool) -> None:
    """Its one call's graph is shared by the diffusion loss and all steps, which passes of their own would free."""
    start_of = lambda sampler: noised_start(  # noqa: E731
        sampler, toy_latents(dtype=torch.float64), toy_latents(seed=4, dtype=torch.float64), STEPS, START
    )
    net, encoder, sampler = ToyDenoiser(dtype=torch.float64), Encoder(), sampler_for("ddim", "epsilon")
    denoiser = conditioned(net, encoder(torch.arange(4.0)))
    start = start_of(sampler)
    passes = JoinedPass(Tensor.backward, diffusion_loss(denoiser, start)[1])  # type: ignore[arg-type]
    path = unroll(denoiser, sampler, start, list(range(START)), [1, 4], True, denoiser if keep else None)
    gradients = leaf_gradients(loss_of(path.latents), path)
    replay(denoiser, path, {i: gradients[i] for i in (1, 4)}, passes.add)
    passes.finish()
    whole, whole_encoder, sampler = ToyDenoiser(dtype=torch.float64), Encoder(), sampler_for("ddim", "epsilon")
    by_full_autograd(whole, whole_encoder, sampler, start_of(sampler), [1, 4])
    assert encoder.weight.grad is not None and whole_encoder.weight.grad is not None
    assert relative_error(encoder.weight.grad, whole_encoder.weight.grad) < ROUNDING
    assert relative_error(net.gradients(), whole.gradients()) < ROUNDING


@pytest.mark.parametrize(("reentrant", "times"), [(False, 1), (True, 3)])
def test_reentrant_checkpointing_fires_hooks_once_for_every_call(reentrant: bool, times: int) -> None:
    """Which is why the host's is made non-reentrant for a joined pass; the gradient is the same."""

    class Checkpointed(ToyDenoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            body = super().forward
            return checkpoint(body, x, t, use_reentrant=reentrant) if torch.is_grad_enabled() else body(x, t)

    loop, plain = Loop("joined"), Loop("joined")
    net = Checkpointed(dtype=torch.float64)
    fired: list[int] = []
    net.last.bias.register_post_accumulate_grad_hook(lambda parameter: fired.append(1))
    loop.net = net
    latents = toy_latents(dtype=torch.float64).requires_grad_()  # reentrant: outputs have a graph only where an input has one
    for each in (loop, plain):
        prediction, loss = diffusion_loss(each.net, latents)
        each.turn.measure(loss, prediction)
        each.turn(each.net, latents, backward=each.backward, loss=loss)
    assert len(fired) == times
    assert relative_error(loop.net.gradients(), plain.net.gradients()) < ROUNDING


def test_the_backward_of_a_joined_turn_is_called_once() -> None:
    calls: list[Backward] = []
    turn, net = exact(memory="joined"), ToyDenoiser(dtype=torch.float64)
    prediction, loss = diffusion_loss(net, toy_latents(dtype=torch.float64))
    turn.measure(loss, prediction)
    turn(net, toy_latents(dtype=torch.float64), backward=lambda total: calls.append(total.backward()), loss=loss)
    assert len(calls) == 1


def test_a_joined_turn_is_rehearsed_beside_the_loops_graph_without_a_trace() -> None:
    """Nothing steps inside its pass, and the loop's own loss is pulled back as if there had been none."""
    rehearsed, plain = Loop("joined", dropout=0.3), Loop("joined", dropout=0.3)
    latents = toy_latents(dtype=torch.float64)
    for loop in (rehearsed, plain):
        torch.manual_seed(0)
        prediction, loss = diffusion_loss(loop.net, latents)
        loop.turn.measure(loss, prediction)
        headroom = Headroom(loop.turn, limited=lambda device, loop=loop: loop is rehearsed)
        calls = loop.net.calls
        if headroom.is_larger(0, latents):
            headroom.rehearse(0, list(loop.net.parameters()), loop.net, latents, joined=True)
            assert loop.net.calls - calls == 5 + 2  # the unroll, and both trained steps with a graph
            assert (loop.fired, loop.turn.turns, len(loop.passes)) == (0, 0, 0)
            assert all(parameter.grad is None for parameter in loop.net.parameters())
        assert bool(headroom.rehearsed) == (loop is rehearsed)
        headroom.make_turn(loop.net, latents, backward=loop.backward, loss=loss)
    assert torch.equal(rehearsed.net.gradients(), plain.net.gradients())
    assert torch.equal(*(torch.cat([p.flatten() for p in loop.turn.discriminator.parameters()]) for loop in (rehearsed, plain)))


def test_of_a_whole_model_the_smallest_gradients_are_computed() -> None:
    """Biases and scales lie in all depths; all gradients together would be a second model, which the true pass never holds."""
    net = ToyDenoiser()
    assert list(rehearsal.smallest(list(net.parameters()), 60)) == [net.last.bias, net.first.bias]
    assert len(list(rehearsal.smallest(list(net.parameters()), 10**6))) == 4
    assert list(rehearsal.smallest(list(net.parameters()), 1)) == [net.last.bias]


def test_memory_that_runs_out_in_a_rehearsed_joined_pass_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OUT_OF_MEMORY("CUDA out of memory.")

    loop = Loop("joined")
    latents = toy_latents(dtype=torch.float64)
    prediction, loss = diffusion_loss(loop.net, latents)
    loop.turn.measure(loss, prediction)
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "_pulling_apart", lambda parameters: full)
        with pytest.raises(TurnOutOfMemoryError, match="stage 'replay'") as refused:
            Headroom(loop.turn, lambda device: True).rehearse(0, list(loop.net.parameters()), loop.net, latents, joined=True)
    assert not refused.value.in_gradient
