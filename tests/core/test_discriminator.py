"""Heads, augmentation, score, losses."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from adt_plugin.core.config import AUGMENTATIONS
from adt_plugin.core.discriminator import Discriminator, FrozenBackbone
from adt_plugin.core.discriminator.augment import AUGMENTATIONS as AUGMENTATION_TABLE
from adt_plugin.core.discriminator.augment import Augment, shift
from adt_plugin.core.discriminator.discriminator import fitting_size
from adt_plugin.core.discriminator.heads import Head, Standardize
from adt_plugin.core.discriminator.losses import LOSSES
from adt_plugin.core.discriminator.scores import SiameseScore, UnaryScore
from adt_plugin.core.stages import discriminator_gradients
from toys import ToyFeatures, toy_discriminator


def images(batch: int = 2, height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Heads and score


def test_only_the_heads_are_trained_and_saved() -> None:
    discriminator = toy_discriminator()
    assert all(name.startswith("score.") for name, _ in discriminator.named_parameters())
    assert all(name.startswith("score.") for name in discriminator.state_dict())
    assert sum(1 for _ in discriminator.parameters()) > 0


def test_standardised_features_have_zero_mean_and_unit_variance() -> None:
    features = torch.randn(8, 5, 6, 6, generator=generator()) * torch.tensor([0.01, 1, 50, 3, 1]).view(1, 5, 1, 1) + 7
    standardize = Standardize(5)
    standardize.update(features)
    out = standardize(features)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(5), atol=0.05, rtol=0)


def test_standardisation_is_frozen_after_its_updates_and_survives_a_state_dict() -> None:
    standardize = Standardize(5, updates=2)
    for seed in range(4):
        standardize.update(torch.randn(1, 5, 2, 2, generator=generator(seed)))
    restored = Standardize(5, updates=2)
    restored.load_state_dict(standardize.state_dict())
    assert restored.seen == standardize.seen == 2
    restored.update(torch.full((1, 5, 2, 2), 100.0))
    assert torch.equal(restored.mean, standardize.mean)


def test_positive_pairs_start_at_a_score_of_zero() -> None:
    discriminator = toy_discriminator()
    features = discriminator.pair_features(images(8, seed=1), images(8, seed=2))
    assert float(discriminator.scores(features)[0].detach().mean()) == pytest.approx(0, abs=1e-4)


def test_both_scores_at_once_are_those_of_each_alone() -> None:
    discriminator = toy_discriminator(augment=AUGMENTATIONS)
    features = discriminator.pair_features(images(4, seed=1), images(4, seed=2))
    real, gen = discriminator.scores(features)
    gen_embedding, real_embedding, again = discriminator.embed(features.gen, features.real, features.real_again)
    torch.testing.assert_close(gen, discriminator.score.compare(gen_embedding, again))
    torch.testing.assert_close(real, discriminator.score.compare(real_embedding, again))


def test_the_generator_is_compared_under_one_augmentation_and_the_discriminator_learns_from_two() -> None:
    discriminator = toy_discriminator(augment=AUGMENTATIONS)
    discriminator.augment.noise = 0.1
    same = images(4, seed=1)
    features = discriminator.pair_features(same, same)
    for gen, real, again in zip(features.gen, features.real, features.real_again, strict=True):
        torch.testing.assert_close(gen, real)
        assert not torch.allclose(real, again, atol=1e-3)


def test_the_gradient_at_the_image_points_to_the_real_one() -> None:
    """Under two shifts it mostly asks the image to move; the cosine then is about a tenth of this."""
    discriminator = toy_discriminator(augment=("translation",))
    real = images(16, seed=2)
    gen = (real + 0.3 * images(16, seed=1)).requires_grad_(True)
    discriminator.score_gen(discriminator.pair_features(gen, real)).sum().backward()
    assert gen.grad is not None
    cosine = torch.nn.functional.cosine_similarity(gen.grad.flatten(1), (real - gen.detach()).flatten(1)).mean()
    assert cosine > 0.2


def test_the_siamese_score_of_two_equal_images_is_the_highest_there_is() -> None:
    discriminator = toy_discriminator(augment=())
    features = discriminator.pair_features(images(4, seed=1), images(4, seed=2))
    same = discriminator.score.compare(*discriminator.embed(features.real, features.real))
    assert (same > discriminator.score_gen(features)).all()


def test_the_unary_score_ignores_the_real_image() -> None:
    discriminator = toy_discriminator("unary", augment=())
    gen = images(seed=1)
    first = discriminator.score_gen(discriminator.pair_features(gen, images(seed=2)))
    statistics = {name: value.clone() for name, value in discriminator.state_dict().items()}
    features = discriminator.pair_features(gen, images(seed=3))
    discriminator.load_state_dict(statistics)  # the running statistics have seen other real images
    torch.testing.assert_close(discriminator.score_gen(features), first)


def test_the_score_is_differentiable_in_the_generated_image_only() -> None:
    discriminator = toy_discriminator(augment=AUGMENTATIONS)
    gen, real = images(seed=1).requires_grad_(True), images(seed=2).requires_grad_(True)
    discriminator.score_gen(discriminator.pair_features(gen, real)).sum().backward()
    assert gen.grad is not None and gen.grad.abs().sum() > 0
    assert real.grad is None


def test_a_seed_fixes_the_heads_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = toy_discriminator(), toy_discriminator()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (320, 1024), (64, 640)])
def test_any_aspect_ratio_is_kept_at_about_the_same_cost(size: tuple[int, int]) -> None:
    height, width = fitting_size(*size, image_size=224, patch_size=14)
    assert height % 14 == width % 14 == 0
    assert height * width == pytest.approx(224 * 224, rel=0.15)
    assert height / width == pytest.approx(size[0] / size[1], rel=0.15)


def test_images_reach_the_backbone_at_the_configured_size() -> None:
    backbone = FrozenBackbone(ToyFeatures(), [8, 12], patch_size=14)
    assert Discriminator(backbone, width=16, image_size=56).fit_size(images(height=64, width=128)).shape[-2:] == (42, 84)
    assert Discriminator(backbone, width=16).fit_size(images()).shape[-2:] == (16, 16)


# Views


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_generated_image_and_the_other_view_are_augmented_each_with_its_own_draw(name: str) -> None:
    """Given one image as generated and as real: what the backbone sees are two pictures, neither of them the image itself."""
    discriminator, image = toy_discriminator(augment=(name,)), images(8, 32, 32)
    discriminator.augment = Augment([name], 14, discriminator.generator)
    unchanged = toy_discriminator(augment=()).pair_features(image, image).real[0]
    features = discriminator.pair_features(image, image)
    for view, other in itertools.combinations([unchanged, features.gen[0], features.real_again[0]], 2):
        assert (view - other).abs().amax((1, 2, 3)).gt(1e-3).sum() > len(image) / 2


def test_the_two_views_of_a_real_image_belong_to_the_same_image() -> None:
    discriminator, real = toy_discriminator(augment=()), images(4, seed=2)
    features = discriminator.pair_features(images(4, seed=1), real)
    for first, second, expected in zip(features.real, features.real_again, discriminator.backbone(real), strict=True):
        torch.testing.assert_close(first, expected)
        torch.testing.assert_close(second, expected)


# Augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_changes_each_image_in_its_own_way_and_repeats_with_its_seed(name: str) -> None:
    same = images(1, 32, 32).expand(16, -1, -1, -1)
    out = Augment([name], 14, generator())(same)
    assert out.shape == same.shape
    assert len({tuple(picture.flatten().tolist()) for picture in out}) > 4
    assert torch.equal(out, Augment([name], 14, generator())(same))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_is_differentiable(name: str) -> None:
    picture = images(2, 8, 8).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: Augment([name], 4, generator(1))(x), (picture,))


def test_no_augmentation_leaves_the_images_alone() -> None:
    assert torch.equal(Augment([], 14, generator())(images()), images())


def test_noise_of_the_given_strength_is_added_anew_to_every_image() -> None:
    out = Augment([], 14, generator(), noise=0.3)(torch.zeros(4, 3, 64, 64))
    assert float(out.std()) == pytest.approx(0.3, rel=0.02)
    assert not torch.equal(out[0], out[1])


def test_the_shift_moves_by_at_most_half_a_patch_and_reaches_both_ends() -> None:
    marked = torch.zeros(400, 1, 32, 32)
    marked[:, :, 16, 16] = 1
    positions = shift(marked, generator(), patch_size=14).flatten(1).argmax(1)
    for offsets in (positions // 32 - 16, positions % 32 - 16):
        assert (int(offsets.min()), int(offsets.max())) == (-7, 7)


def test_cutout_greys_a_sixteenth_of_an_inner_image() -> None:
    out = Augment(["cutout"], 14, generator())(torch.ones(200, 3, 32, 32))
    shares = (out == 0).float().mean((1, 2, 3))
    assert float(shares.max()) == pytest.approx(1 / 16)
    assert float(shares.min()) > 0


# Losses


def test_hinge_is_two_at_chance_and_zero_beyond_the_margins() -> None:
    assert float(LOSSES["hinge"].discriminator(torch.zeros(3), torch.zeros(3))) == 2.0
    assert float(LOSSES["hinge"].discriminator(torch.tensor([1.5]), torch.tensor([-1.2]))) == 0.0
    assert float(LOSSES["hinge"].discriminator(torch.tensor([0.5, 2.0]), torch.tensor([-2.0, 1.0]))) == pytest.approx(
        0.25 + 1.0
    )


def test_the_relativistic_loss_sees_nothing_but_the_difference_of_the_two_pairs_of_one_image() -> None:
    loss = LOSSES["relativistic"]
    real, gen = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
    by_hand = (torch.log(1 + torch.exp(torch.tensor(-0.5))) + torch.log(1 + torch.exp(torch.tensor(2.5)))) / 2
    torch.testing.assert_close(loss.discriminator(real, gen), by_hand)
    torch.testing.assert_close(loss.discriminator(real + 7, gen + 7), by_hand)
    assert not loss.is_won(float(loss.discriminator(torch.zeros(3), torch.zeros(3))))
    assert loss.is_won(float(loss.discriminator(torch.full((3,), 6.0), torch.zeros(3))))


@pytest.mark.parametrize("name", LOSSES)
def test_the_generator_wants_a_high_score(name: str) -> None:
    assert float(LOSSES[name].generator(torch.tensor([1.0, 3.0]))) == -2.0


class Linear(nn.Module):
    """Scores whose slope is known: a weighted sum of the first image's features."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.heads = slope, nn.ModuleList()

    def compare(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
        return self.slope * first[0].flatten(1).sum(1)


@pytest.mark.parametrize("slope", [0.0, 0.5, 3.0])
def test_the_roughness_is_the_squared_slope_over_all_features(slope: float) -> None:
    discriminator = toy_discriminator(augment=())
    features = discriminator.pair_features(images(64, seed=1), images(64, seed=2))
    heads, discriminator.score = discriminator.score.heads, Linear(slope)
    for head in heads:
        head.layers = nn.Identity()  # what is left standardises
    discriminator.score.heads = heads
    real, gen = discriminator.scores(features)
    size = features.real[0][0].numel()
    assert float(discriminator.roughness(features, real, gen)) == pytest.approx(2 * slope**2 * size, rel=0.3, abs=1e-9)


def test_the_penalty_lowers_the_slope_of_the_scores() -> None:
    """The same pairs, learnt with and without: both are told apart, one of them by a gentler score."""
    slopes = {}
    for penalty in (0.0, 1.0):
        discriminator = toy_discriminator(augment=())
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3)
        features = discriminator.pair_features(images(32, seed=1), images(32, seed=2))
        for _ in range(40):
            discriminator_gradients(discriminator, features, LOSSES["relativistic"], penalty)
            optimizer.step()
        real, gen = discriminator.scores(features)
        assert (real > gen).all()
        slopes[penalty] = float(discriminator.roughness(features, real, gen).detach())
    assert slopes[1.0] < 0.5 * slopes[0.0]


# Scores and heads, by hand


def test_the_siamese_score_is_ten_times_the_mean_cosine_over_positions_and_blocks() -> None:
    score = SiameseScore([3, 3], width=8)
    generator = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(2, 5, h, 4, generator=generator) for h in (2, 3)] for _ in range(2))
    expected = []
    for image in range(2):
        blocks = []
        for a, b in zip(first, second, strict=True):
            cosines = [
                float(a[image, :, y, x] @ b[image, :, y, x] / (a[image, :, y, x].norm() * b[image, :, y, x].norm()))
                for y in range(a.shape[2])
                for x in range(a.shape[3])
            ]
            blocks.append(sum(cosines) / len(cosines))
        expected.append(10 * sum(blocks) / 2)
    assert score.compare(first, second).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_unary_score_is_the_mean_over_positions_and_blocks_of_one_channel_maps() -> None:
    score = UnaryScore([6, 6], width=8)
    features = [torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    maps = [head(block).detach() for head, block in zip(score.heads, features, strict=True)]
    assert all(found.shape == (2, 1, 4, 4) for found in maps)
    expected = [(float(maps[0][i].mean()) + float(maps[1][i].mean())) / 2 for i in range(2)]
    assert score.compare(maps, []).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("width", "groups"), [(256, 32), (128, 32), (64, 16), (16, 4), (12, 2), (8, 2), (9, 1)])
def test_a_head_keeps_the_grid_and_normalises_groups_of_four_channels_or_more(width: int, groups: int) -> None:
    head = Head(5, width, 7)
    assert head(torch.randn(2, 5, 3, 4)).shape == (2, 7, 3, 4)
    assert head.layers[1].num_groups == groups


def test_brightness_moves_both_ways_by_up_to_a_quarter() -> None:
    flat = torch.zeros(400, 3, 2, 2)  # without saturation or contrast to change
    shifts = AUGMENTATION_TABLE["color"](flat, torch.Generator().manual_seed(0)).mean((1, 2, 3))
    assert -0.25 <= shifts.min() < -0.2 and 0.2 < shifts.max() <= 0.25


def test_the_smallest_image_is_given_one_patch() -> None:
    assert fitting_size(4, 400, 28, 14) == (14, 280)
