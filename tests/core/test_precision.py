"""fp16 with a loss scaler, and bf16: nothing underflows on the way back, nothing is unscaled twice, overflows are skipped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core.report import TurnReport
from adt_plugin.core.turn import AdversarialTurn
from toys import ToyDenoiser, toy_decode, toy_discriminator, toy_latents, toy_turn

SMALL = 1e-7
"""The diffusion loss times this has a gradient that fp16 cannot hold without a scaler; so has the balanced turn."""


class HalfDenoiser(ToyDenoiser):
    """Weights in float32, arithmetic in half precision, as under the host's autocast."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.half_dtype = dtype

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", self.half_dtype, enabled=self.half_dtype != torch.float32):
            return super().forward(x, t)


class Loop:
    """The host's loop with a loss scaler, as accelerate runs it; `scale` 1 is no scaler."""

    def __init__(self, dtype: torch.dtype, scale: float = 1.0, **options: object) -> None:
        self.net, self.turn = HalfDenoiser(dtype), toy_turn(**options)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1.0)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def overflowed(self) -> bool:
        return not self.net.gradients().isfinite().all()

    def diffusion(self, factor: float = SMALL) -> None:
        noise = toy_latents(seed=8)
        prediction = self.net(toy_latents() + noise, torch.tensor([300, 300]))
        self.turn.watch(prediction, self.scaler.get_scale())
        self.backward(factor * nn.functional.mse_loss(prediction.float(), noise))

    def adversarial(self) -> TurnReport:
        return self.turn(self.net, toy_latents(), backward=self.backward, overflowed=self.overflowed)

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class JoinedLoop(Loop):
    """The same with one backward pass for both."""

    def diffusion(self, factor: float = SMALL) -> None:
        noise = toy_latents(seed=8)
        prediction = self.net(toy_latents() + noise, torch.tensor([300, 300]))
        self.diffusion_loss = factor * nn.functional.mse_loss(prediction.float(), noise)
        self.turn.measure(self.diffusion_loss, prediction, self.scaler.get_scale())

    def adversarial(self) -> TurnReport:
        return self.turn(self.net, toy_latents(), backward=self.backward, overflowed=self.overflowed, loss=self.diffusion_loss)


EITHER_WAY = pytest.mark.parametrize("kind", [Loop, JoinedLoop])


def turn_alone(loop: Loop) -> tuple[Tensor, TurnReport]:
    """The turn's own gradient, unscaled as the host's step does it."""
    loop.diffusion()
    loop.net.zero_grad()
    report = loop.adversarial()
    loop.scaler.unscale_(loop.optimizer)
    return loop.net.gradients(), report


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_scaled_gradient_of_a_turn_is_the_full_precisions(dtype: torch.dtype) -> None:
    expected, whole = turn_alone(Loop(torch.float32))
    scale = 2.0**16 if dtype == torch.float16 else 1.0
    found, report = turn_alone(Loop(dtype, scale))
    assert relative_error(found, expected) < (0.02 if dtype == torch.float16 else 0.1)
    assert report.grad_norm_diffusion == pytest.approx(whole.grad_norm_diffusion, rel=0.02)
    assert report.grad_norm == pytest.approx(whole.grad_norm, rel=0.02)


def test_without_the_scaler_the_same_turn_is_lost_in_fp16() -> None:
    """The fault that the test above can see."""
    expected, _ = turn_alone(Loop(torch.float32))
    found, _ = turn_alone(Loop(torch.float16))
    assert relative_error(found, expected) > 0.2


@EITHER_WAY
def test_the_sum_is_unscaled_once(kind: type[Loop]) -> None:
    """Diffusion and turn are scaled alike, so that one unscaling gives the sum; the scaler refuses a second one."""
    sums = []
    for loop in (Loop(torch.float32, balance="ratio", weight=1.0), kind(torch.float16, 2.0**18, balance="ratio", weight=1.0)):
        loop.diffusion()
        loop.adversarial()
        loop.scaler.unscale_(loop.optimizer)
        sums.append(loop.net.gradients().clone())
    assert relative_error(sums[1], sums[0]) < 0.02


def heads(turn: AdversarialTurn) -> list[Tensor]:
    """Without the biases, which the first images calibrate."""
    return [parameter.detach().clone() for parameter in turn.discriminator.score.heads.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@EITHER_WAY
def test_a_step_that_the_scaler_skips_is_skipped_by_the_heads_too(kind: type[Loop]) -> None:
    """The scale is too high at first: fp16 overflows in the backward. It falls, and both sides train."""
    loop = kind(torch.float16, 2.0**40)
    moved = []
    for _ in range(40):
        weights, before, scale = loop.net.first.weight.clone(), heads(loop.turn), loop.scaler.get_scale()
        loop.diffusion(1.0)
        report = loop.adversarial()
        loop.step()
        assert not report.skipped  # no fault of the turn: it does not count for --adt_max_bad_turns
        moved.append((not torch.equal(weights, loop.net.first.weight), not same(before, heads(loop.turn))))
        assert moved[-1][0] == (loop.scaler.get_scale() >= scale)
    assert set(moved) == {(False, False), (True, True)}
    assert moved[0] == (False, False) and moved[-1] == (True, True)
    assert loop.net.first.weight.isfinite().all() and 1.0 <= loop.scaler.get_scale() < 2.0**40


def test_a_turn_of_the_warmup_that_the_scaler_skips_is_made_again() -> None:
    """A warm-up of 3 is 3 looks of the discriminator from which it learns, however long the scaler searches for its scale."""
    loop = Loop(torch.float16, 2.0**30, warmup=3, every=1)
    seen = []
    for _ in range(40):
        before = heads(loop.turn)
        loop.diffusion(1.0)
        report = loop.adversarial()
        loop.step()
        seen.append((report.warmup, report.turn, not same(before, heads(loop.turn))))
        if not report.warmup:
            break
    assert seen[0] == (True, 1, False)  # the scale is too high
    assert [turn for warmup, turn, learned in seen if learned][:3] == [1, 2, 3]
    assert seen[-1][:2] == (False, 4)


def scaled_by(value: float) -> Callable[[Tensor], Tensor]:
    return lambda latents: toy_decode(latents) * value


def test_an_infinity_in_a_turn_is_no_overflow_of_the_scaler() -> None:
    """It never reaches `p.grad`: the host's own step is taken, at the same scale; the turn is dropped on both sides."""
    loop = Loop(torch.float16, 2.0**12)
    loop.diffusion(1.0)
    alone = loop.net.gradients().clone()
    before = heads(loop.turn)
    loop.turn.decode = scaled_by(float("inf"))
    assert loop.adversarial().skipped
    assert torch.equal(loop.net.gradients(), alone) and same(before, heads(loop.turn))
    loop.step()
    assert loop.scaler.get_scale() == 2.0**12
    loop.turn.decode = toy_decode
    loop.diffusion(1.0)
    report = loop.adversarial()
    assert report.grad_norm > 0 and not report.skipped


@pytest.mark.parametrize(("dtype", "lost"), [(torch.bfloat16, False), (torch.float16, True)])
def test_small_gradients_pass_a_backbone_in_bf16_and_would_not_in_fp16(dtype: torch.dtype, lost: bool) -> None:
    """Why `--adt_decode_dtype` has no fp16: the mean over images, positions and pixels is small before any scaler sees it."""
    gradients = []
    for precision in (torch.float32, dtype):
        discriminator = toy_discriminator(augment=())
        discriminator.backbone.to(precision)
        images = toy_decode(toy_latents()).requires_grad_(True)
        scores = discriminator.score_gen(discriminator.pair_features(images, toy_decode(toy_latents(seed=4))))
        gradients.append(torch.autograd.grad(1e-6 * scores.mean(), images)[0])
    assert (relative_error(gradients[1], gradients[0]) > 0.5) == lost
    assert lost or relative_error(gradients[1], gradients[0]) < 0.1
