"""What compares each image with others: none where both sets are alike, away from what all have in common, off by default."""

from __future__ import annotations

import torch
from torch import Tensor

from adt_plugin.core.discriminator import Discriminator
from adt_plugin.core.discriminator.discriminator import OTHERS
from adt_plugin.core.discriminator.history import FeatureHistory, packed
from toys import ToyDenoiser, diffusion_backward, toy_discriminator, toy_latents, toy_turn


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def among(discriminator: Discriminator, gen: Tensor, real: Tensor) -> Tensor:
    return discriminator.score_among(discriminator.pair_features(gen, real))


def test_sets_of_the_same_images_have_no_difference() -> None:
    same = images(4)
    assert among(toy_discriminator(), same, same).abs().max() < 1e-5


def test_images_that_got_alike_are_told_to_part() -> None:
    """All are drawn towards one picture: they are more like other generated ones than like other real ones."""
    discriminator, real, typical = toy_discriminator(), images(6), images(1, seed=9)
    gen = (0.2 * real + 0.8 * typical).requires_grad_(True)
    score = among(discriminator, gen, real)
    assert score.mean() < -0.5
    (away,) = torch.autograd.grad(score.sum(), [gen])
    with torch.no_grad():
        assert among(discriminator, gen + 0.05 * away / away.abs().max(), real).mean() > score.mean()


def test_it_is_the_mean_over_the_neighbours_in_the_batch() -> None:
    discriminator, gen, real = toy_discriminator().requires_grad_(False), images(3), images(3, seed=1)
    features = discriminator.pair_features(gen, real)
    first, second = discriminator.embed(features.gen, features.real)

    def one(embedding: list[Tensor], i: int) -> list[Tensor]:
        return [block[i : i + 1] for block in embedding]

    compare = discriminator.score.compare
    expected = [
        sum(float(compare(one(first, i), one(second, j)) - compare(one(first, i), one(first, j))) for j in range(3) if j != i)
        / 2
        for i in range(3)
    ]
    torch.testing.assert_close(discriminator.score_among(features), torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_a_batch_of_one_is_compared_with_earlier_turns_of_its_shape() -> None:
    discriminator, history = toy_discriminator(), FeatureHistory()
    for seed in range(3):
        features = discriminator.pair_features(images(1, seed), images(1, seed + 10))
        history.add(packed(features), features)
    wide = discriminator.pair_features(torch.rand(1, 3, 16, 32), torch.rand(1, 3, 16, 32))
    history.add(packed(wide), wide)
    latest = discriminator.pair_features(images(1, 20), images(1, 21))
    earlier = history.like(latest)
    assert len(earlier) == 3 and OTHERS >= 3
    assert discriminator.score_among(latest) == 0  # nobody to be compared with
    one_by_one = [discriminator.score_among(latest, [other]) for other in earlier]
    torch.testing.assert_close(discriminator.score_among(latest, earlier), torch.stack(one_by_one).mean(0))


def gradient(**options: object) -> Tensor:
    """What two turns on a batch of one or two add to the toy denoiser's gradient."""
    batch = int(options.pop("batch", 2))  # type: ignore[call-overload]
    turn, net = toy_turn(**({"weight": 1.0, "disc_steps": 1} | options)), ToyDenoiser()
    for seed in range(3):
        net.zero_grad()
        diffusion_backward(turn, net, toy_latents(batch, seed))
        turn(net, toy_latents(batch, seed))
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def test_turns_follow_it_and_without_it_are_as_before() -> None:
    assert torch.equal(gradient(), gradient(diversity=0.0))
    assert not torch.allclose(gradient(), gradient(diversity=10.0))
    assert not torch.allclose(gradient(batch=1), gradient(batch=1, diversity=10.0))  # by the history
