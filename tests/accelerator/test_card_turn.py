"""A turn on the card: the same gradient as on the CPU, one decision, one report."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from accelerator.device import Traffic, watched
from adt_plugin.core.diffusion.denoiser import Denoiser, Guided
from adt_plugin.core.discriminator.augment import AUGMENTATIONS
from adt_plugin.core.images.decoding import LatentDecoder, LatentFormat
from adt_plugin.core.report import TurnReport
from adt_plugin.core.run import state
from adt_plugin.core.turn import AdversarialTurn
from toys import SD_ALPHAS_CUMPROD, ToyDenoiser, build_sampler, toy_discriminator, toy_latents, toy_turn

CPU = torch.device("cpu")
WAITS = {"turn.py:_all_finite": 1, "report.py:on_the_cpu": 1}
"""Of every turn: the decision, and the report with all that travels along with it."""


class Loop:
    """A training loop with turns on one device."""

    def __init__(self, device: torch.device, turn: AdversarialTurn, dropout: float = 0.0) -> None:
        self.device, self.turn, self.net = device, turn, ToyDenoiser(dropout).to(device)
        turn.discriminator.to(device)
        self.latents, self.noise = (toy_latents(seed=seed).to(device) for seed in (3, 9))
        self.autocast: torch.dtype | None = None

    def denoiser(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.net(x, t)

    def host_step(self, backward: Callable[[Tensor], None] = Tensor.backward, scale: float = 1.0) -> None:
        prediction = self.denoiser(self.latents + self.noise, torch.full((2,), 300, device=self.device))
        self.turn.watch(prediction, scale)
        backward(F.mse_loss(prediction.float(), self.noise))

    def turns(self, count: int, call: Denoiser | None = None) -> tuple[list[TurnReport], Traffic]:
        """Make turns; the reports of all, and the traffic of the last."""
        reports = []
        for _ in range(count):
            self.net.zero_grad()
            self.host_step()
            with watched() as traffic:
                reports.append(self.turn(call or self.denoiser, self.latents))
        return reports, traffic


def loop_on(device: torch.device, **options: object) -> Loop:
    return Loop(device, toy_turn(**options))


def settled(loop: Loop) -> Loop:
    """Past the first turns, in which the heads collect their statistics."""
    for standardize in loop.turn.discriminator.standardizers:
        standardize.seen = standardize.updates
    return loop


# What it computes

ALIKE: dict[str, dict[str, object]] = {
    "ddim, cap": {},
    "euler": {"sampler": "euler"},
    "dpm++, ratio": {"sampler": "dpm++", "balance": "ratio"},
    "kept graphs": {"memory": "fast"},
    "auto memory": {"memory": "auto"},
    "unary, hinge": {"disc_type": "unary", "disc_loss": "hinge"},
    "warm-up": {"warmup": 2},
    "a crop, all steps": {"decode_crop": 32, "grad_mask": "all"},
}


@pytest.mark.parametrize("options", ALIKE.values(), ids=ALIKE)
def test_the_card_computes_what_the_cpu_computes(card: torch.device, options: dict[str, object]) -> None:
    """Without the penalty, whose noise a device draws for itself."""
    loops = [loop_on(device, disc_penalty=0.0, **options) for device in (CPU, card)]
    (cpu, _), (on_card, traffic) = (settled(loop).turns(3) for loop in loops)
    for mine, its in zip(on_card, cpu, strict=True):
        assert (mine.start, mine.grad_positions, mine.warmup) == (its.start, its.grad_positions, its.warmup)
        assert (mine.loss_d, mine.grad_norm) == pytest.approx((its.loss_d, its.grad_norm), rel=1e-4)
        assert mine.gen.device == card and mine.scores.device == card
    torch.testing.assert_close(loops[1].net.gradients().cpu(), loops[0].net.gradients(), rtol=1e-4, atol=1e-6)
    assert traffic.waits == WAITS


def test_guidance_and_dropout_are_replayed_on_the_card(card: torch.device) -> None:
    """A replay that met another dropout would not give the gradient of kept graphs."""
    gradients = []
    for memory in ("low", "fast"):
        loop = Loop(card, toy_turn(memory=memory, disc_penalty=0.0, grad_steps=2), dropout=0.4)
        torch.manual_seed(1)
        loop.turns(1, Guided(loop.denoiser, lambda x, t, call=loop.denoiser: call(x * 0.5, t), 3.0))
        gradients.append(loop.net.gradients())
    torch.testing.assert_close(*gradients)


def test_the_cards_own_random_state_is_left_alone(card: torch.device) -> None:
    loop = Loop(card, toy_turn(), dropout=0.4)
    loop.host_step()
    before = torch.card.get_rng_state().clone(), torch.get_rng_state()
    with watched() as traffic:
        loop.turn(loop.denoiser, loop.latents)
    assert traffic.draws > 0
    assert torch.equal(before[0], torch.card.get_rng_state()) and torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_without_waiting(card: torch.device, name: str) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = AUGMENTATIONS[name](images, torch.Generator().manual_seed(3))
    on_card = images.to(card)
    with watched() as traffic:
        found = AUGMENTATIONS[name](on_card, torch.Generator().manual_seed(3))
    assert not traffic.waits and found.device == card
    torch.testing.assert_close(found.cpu(), expected)


# What it asks of the card


def test_while_statistics_are_collected_every_block_waits_once(card: torch.device) -> None:
    assert loop_on(card).turns(2)[1].waits == WAITS | {"heads.py:update": 2}


def features_of(turn: AdversarialTurn) -> int:
    """Bytes of a turn's features in bfloat16."""
    return sum(2 * block.numel() for image in ("gen", "real", "real_again") for block in getattr(turn.history.kept[-1], image))


def older_turns_drawn(turn: AdversarialTurn, seed: int) -> int:
    """How often the next turn's further head steps learn from another turn than itself, if the history draws from this seed."""
    generator, choices = torch.Generator().manual_seed(seed), len(turn.history) + 1
    drawn = [int(torch.randint(choices, (1,), generator=generator)) for _ in range(turn.config.disc_steps - 1)]
    return sum(index < choices - 1 for index in drawn)


@pytest.mark.parametrize("disc_steps", [1, 5])
def test_bytes_that_travel_are_the_noise_and_the_features(card: torch.device, disc_steps: int) -> None:
    loop = settled(loop_on(card, disc_steps=disc_steps))
    loop.turns(3)
    features, older, draw = features_of(loop.turn), older_turns_drawn(loop.turn, 5), loop.turn.history.draw
    own = torch.Generator().manual_seed(5)
    loop.turn.history.draw = lambda generator, latest: draw(own, latest)
    traffic = loop.turns(1)[1]
    assert older == (0 if disc_steps == 1 else 2)
    augment = sum(count for place, count in traffic.to_card.items() if place.startswith("augment.py"))
    windows = 2 * 4 * len(loop.latents) * sum(loop.turn.discriminator.backbone.channels)  # pooled, of both images
    assert 0 < traffic.from_card["report.py:on_the_cpu"] - features - windows < 100  # and the numbers
    assert set(traffic.from_card) == {"report.py:on_the_cpu"}
    assert traffic.to_card["discriminator.py:each"] == older * features
    assert traffic.to_card["turn.py:_noised"] == 4 * loop.latents.numel()
    assert augment < 500 and traffic.to_card.total() == older * features + 4 * loop.latents.numel() + augment
    copies = {place: count for place, count in traffic.copies.items() if not place.startswith("augment.py")}
    blocks = 3 * len(loop.turn.discriminator.backbone.channels)
    expected = {"turn.py:_noised": 1, "report.py:on_the_cpu": 1} | ({"discriminator.py:each": older * blocks} if older else {})
    assert copies == expected


# Offload, decoder


def tiny_decoder() -> LatentDecoder:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4)  # fmt: skip
    return LatentDecoder(vae.decoder, vae.post_quant_conv, LatentFormat(0.18215, pixels=2))


def decoding_turn(device: torch.device, dtype: torch.dtype = torch.float32, **options: object) -> AdversarialTurn:
    """With a real VAE's decoder, placed as a run places it."""
    from adt_plugin.core.config import ADTConfig

    config = ADTConfig(**{"warmup": 0, "steps": 4, "disc_penalty": 0.0} | options)
    home = CPU if config.offload else device
    discriminator, decoder = toy_discriminator(), tiny_decoder().to(home, dtype)
    discriminator.to(device).backbone.to(home, dtype)
    sampler = build_sampler("ddim", SD_ALPHAS_CUMPROD, "epsilon")
    return AdversarialTurn(
        config, sampler=sampler, decode=decoder, discriminator=discriminator, latent_pixels=2, decoder=decoder
    )


class DecodingLoop(Loop):
    """Leaves decoder and backbone where `decoding_turn` has put them."""

    def __init__(self, device: torch.device, turn: AdversarialTurn) -> None:
        self.device, self.turn, self.net = device, turn, ToyDenoiser().to(device)
        self.latents, self.noise = (toy_latents(seed=seed).to(device) for seed in (3, 9))
        self.autocast = None


def weights(turn: AdversarialTurn) -> list[Tensor]:
    return [*turn.decode.parameters(), *turn.discriminator.backbone._network.parameters()]


@pytest.mark.parametrize("memory", ["low", "fast"])
def test_a_checkpointed_decoder_computes_what_the_cpu_computes(card: torch.device, memory: str) -> None:
    loops = [DecodingLoop(device, decoding_turn(device, memory=memory)) for device in (CPU, card)]
    for loop in loops:
        loop.turns(2)
    torch.testing.assert_close(loops[1].net.gradients().cpu(), loops[0].net.gradients(), rtol=1e-4, atol=1e-6)
    assert settled(loops[1]).turns(1)[1].waits == WAITS


def test_offloaded_weights_travel_there_and_nothing_travels_back(card: torch.device) -> None:
    turn = decoding_turn(card, offload=True)
    loop = settled(DecodingLoop(card, turn))
    places = [tensor.data_ptr() for tensor in weights(turn)]
    traffic = loop.turns(2)[1]
    assert {tensor.device.type for tensor in weights(turn)} == {"cpu"}
    assert [tensor.data_ptr() for tensor in weights(turn)] == places  # the very same memory, not a copy of a copy
    assert traffic.to_card["offload.py:fetched"] == sum(tensor.numel() * 4 for tensor in weights(turn))
    assert traffic.waits == WAITS


# A state


def test_a_state_is_taken_from_the_card_and_put_back_onto_it(card: torch.device) -> None:
    straight = loop_on(card)
    straight.turns(3)
    captured = state.capture(straight.turn, straight.turn.config)
    assert {tensor.device.type for tensor in captured.tensors.values()} == {"cpu"}
    resumed = loop_on(card)
    state.restore(resumed.turn, captured)
    first, second = (loop.turns(1)[0][0] for loop in (straight, resumed))
    assert (first.loss_d, first.grad_norm) == (second.loss_d, second.grad_norm)
    assert torch.equal(straight.net.gradients(), resumed.net.gradients())
    assert all(moment.device == card for s in resumed.turn.optimizer.state.values() for n, moment in s.items() if n != "step")


# Half precision


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision_is_near_full_precision(card: torch.device, dtype: torch.dtype, near: float, how: str) -> None:
    exact, half = (loop_on(card, disc_penalty=0.0) for _ in range(2))
    if how == "autocast":
        half.autocast = dtype
    else:
        half.net.to(dtype)
    call = (lambda x, t: half.net(x.to(dtype), t)) if how == "weights" else None
    scaler = torch.amp.GradScaler("card", init_scale=2.0**14, enabled=dtype == torch.float16 and how == "autocast")
    backward = lambda loss: scaler.scale(loss).backward()  # noqa: E731
    exact.turns(1)
    half.latents = half.latents.to(dtype if how == "weights" else torch.float32)
    prediction = (call or half.denoiser)(half.latents + half.noise, torch.full((2,), 300, device=card))
    half.turn.watch(prediction, scaler.get_scale())
    backward(F.mse_loss(prediction.float(), half.noise))
    half.turn(call or half.denoiser, half.latents, backward=backward)
    found = half.net.gradients().float() / scaler.get_scale()
    assert float((found - exact.net.gradients()).norm() / exact.net.gradients().norm()) < near


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoder_and_backbone_in_their_own_precision(card: torch.device, dtype: torch.dtype) -> None:
    loop = DecodingLoop(card, decoding_turn(card, dtype, memory="low"))
    report = loop.turns(1)[0][0]
    assert report.grad_norm > 0 and not report.skipped and report.gen.dtype == torch.float32
    assert all(tensor.dtype == dtype for tensor in weights(loop.turn))


# What a training loop does around turns


def test_gradients_accumulate_over_batches(card: torch.device) -> None:
    """A turn in each of two batches of one optimizer step adds to what is there."""
    loops = [loop_on(device, disc_penalty=0.0) for device in (CPU, card)]
    for loop in loops:
        for _ in range(2):
            loop.host_step()
            loop.turn(loop.denoiser, loop.latents)
        nn.utils.clip_grad_norm_(loop.net.parameters(), 1.0)
        torch.optim.AdamW(loop.net.parameters()).step()
    cpu, on_card = ([parameter.detach().cpu() for parameter in loop.net.parameters()] for loop in loops)
    torch.testing.assert_close(on_card, cpu, rtol=1e-4, atol=1e-5)


def test_latents_on_the_wrong_device_do_not_pass_unnoticed(card: torch.device) -> None:
    loop = loop_on(card)
    loop.host_step()
    with pytest.raises(RuntimeError, match="same device"):
        loop.turn(loop.denoiser, loop.latents.cpu())
