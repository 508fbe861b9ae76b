"""Figures, intervals and the sentences that are made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adt_plugin.compare.inputs import TrainingImage
from adt_plugin.compare.scores import METRICS, Figure, Resamples, Scores, figure_of, score_all, similarities
from adt_plugin.compare.settings import NEUTRAL, Prompt, Sampling, Shot
from adt_plugin.compare.verdict import cautions, headline, side_effects, standings

PROMPTS = [Prompt(text) for text in ("a", "b", "c", "d")]
SEEDS = range(15)
SHOTS = [Shot(prompt, seed, Sampling(20, 7.0)) for prompt in PROMPTS for seed in SEEDS]
SHOTS += [Shot(Prompt("dog", "", NEUTRAL), seed, Sampling(20, 7.0)) for seed in (0, 1)]
IMAGES = [TrainingImage(Path(f"{i}.png"), "a" if i < 5 else "") for i in range(24)]
SIZE = 16


def draws(count: int, seed: int) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.fixture(scope="module")
def scores() -> Scores:
    """`near` is of the training images' distribution, `base` and `far` are shifted, `copy` repeats training images."""
    reference, noise = draws(len(IMAGES), 0), draws(len(SHOTS), 1)
    copies = reference[torch.arange(len(SHOTS)) % 4]
    features = {"base": noise + 1.0, "near": noise + 0.05, "far": noise + 1.02, "copy": copies + 0.001 * noise}
    return score_all(SHOTS, features, reference, IMAGES)


def test_every_candidate_has_every_figure_but_the_bases_drift(scores: Scores) -> None:
    (scope,) = scores.scopes
    names = {metric.name for metric in METRICS}
    assert set(scope.figures["near"]) == names
    assert set(scope.figures["base"]) == names - {"drift"}
    assert (scope.images, scores.reference_count, scores.drift_images) == (60, 24, 2)


def test_the_nearer_set_has_the_lower_distances(scores: Scores) -> None:
    figures = scores.scopes[0].figures
    for metric in ("kid", "fd"):
        assert figures["near"][metric].value < figures["base"][metric].value
    assert figures["near"]["recall"].value > figures["base"]["recall"].value
    assert figures["near"]["drift"].value > figures["far"]["drift"].value


def test_a_difference_is_of_pairs_and_surer_than_its_sides(scores: Scores) -> None:
    scope = scores.scopes[0]
    difference = scope.differences["far", "base"]["kid"]
    sides = scope.figures["far"]["kid"], scope.figures["base"]["kid"]
    assert difference.value == pytest.approx(sides[0].value - sides[1].value)
    assert width(difference) < min(map(width, sides)) / 3


def width(figure: Figure) -> float:
    assert figure.low is not None and figure.high is not None
    return figure.high - figure.low


def test_copies_are_found_with_the_image_that_they_copy(scores: Scores) -> None:
    assert scores.scopes[0].figures["copy"]["nearest"].value < 0.1
    first = scores.closest["copy"][0]
    assert first.distance < 0.01 and first.reference == SHOTS.index(first.shot) % 4
    assert any("copy may copy" in sentence for sentence in side_effects(scores))


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    values = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = Resamples(200, 1).units
    figure = figure_of((counts @ values) / 200)
    error = float(values.std()) / 200**0.5
    assert figure is not None
    assert figure.value == pytest.approx(float(values.mean()))
    assert figure.low == pytest.approx(figure.value - 1.96 * error, abs=0.25 * error)
    assert figure.high == pytest.approx(figure.value + 1.96 * error, abs=0.25 * error)


def test_a_figure_that_is_no_number_is_left_out_and_one_without_spread_has_no_interval() -> None:
    assert figure_of(torch.tensor([torch.nan, 1.0])) is None
    assert figure_of(torch.tensor([2.0, 2.0, 2.0])) == Figure(2.0)


def test_similarity_is_to_the_images_of_the_caption_or_to_all() -> None:
    """As PEFT's benchmark pairs them: an image generated from a caption, and the training image of that caption."""
    gen, reference = torch.eye(2, SIZE), torch.eye(4, SIZE)
    images = [TrainingImage(Path("x"), caption) for caption in ("a", "", "", "")]
    shots = [Shot(Prompt("a"), 0, Sampling(1, 1)), Shot(Prompt("other"), 0, Sampling(1, 1))]
    assert similarities(shots, gen, reference, images).tolist() == [1.0, 0.25]


def test_several_samplings_are_scored_together_and_alone() -> None:
    shots = [Shot(prompt, seed, Sampling(steps, 7.0)) for steps in (10, 20) for prompt in PROMPTS[:2] for seed in (0, 1)]
    scores = score_all(shots, {"base": draws(8, 1), "lora": draws(8, 2)}, draws(6, 0), IMAGES[:6])
    assert [scope.title for scope in scores.scopes] == ["all together", "10 steps, guidance 7", "20 steps, guidance 7"]
    assert [scope.images for scope in scores.scopes] == [8, 4, 4]
    assert scores.scopes[1].figures["lora"] != scores.scopes[2].figures["lora"]


def test_one_image_and_two_references_leave_figures_out_instead_of_failing() -> None:
    scores = score_all(SHOTS[:1], {"base": draws(1, 1), "lora": draws(1, 2)}, draws(2, 0), IMAGES[:2])
    assert set(scores.scopes[0].figures["lora"]) == {"fd", "similarity", "nearest"}
    assert headline(scores).startswith("There are too few images")


def test_the_headline_names_the_nearest_and_whether_it_is_sure(scores: Scores) -> None:
    near = narrowed(scores, "base", "near")
    assert headline(near).startswith("near comes nearest to the training images (KID ")
    assert "more than the choice of images explains" in headline(near)


def test_the_headline_has_no_winner_where_chance_would_do() -> None:
    noise, other = draws(len(SHOTS), 1), draws(len(SHOTS), 2)
    scores = score_all(SHOTS, {"base": noise, "lora": other}, draws(24, 0), IMAGES)
    assert headline(scores).startswith("No winner: ") and "may be chance" in headline(scores)


def test_those_behind_the_two_nearest_that_cannot_be_told_apart_are_said() -> None:
    noise, other, reference = draws(len(SHOTS), 1), draws(len(SHOTS), 2), draws(24, 0)
    scores = score_all(SHOTS, {"base": noise + 2.0, "a": noise + 1.0, "b": other + 1.0, "near": noise}, reference, IMAGES)
    assert headline(scores).startswith("near comes nearest")
    assert sum("cannot be told apart by their distance (95 % interval" in sentence for sentence in standings(scores)) == 1
    assert standings(narrowed(scores, "base", "near")) == []


def test_candidates_that_the_base_is_ahead_of_are_named() -> None:
    noise, reference = draws(len(SHOTS), 1), draws(24, 0)
    worse = score_all(SHOTS, {"base": noise, "a": noise + 1.0, "b": noise + 2.0}, reference, IMAGES)
    assert standings(worse)[0].startswith("b is ") and "farther than a (95 % interval" in standings(worse)[0]
    assert standings(worse)[1].startswith("Farther from the training images than the base: a, b. Training was too short")
    assert standings(narrowed(worse, "base")) == []


def narrowed(scores: Scores, *names: str) -> Scores:
    """The scores of some of the candidates."""
    scope = scores.scopes[0]
    scope = type(scope)(
        scope.title,
        scope.images,
        {name: scope.figures[name] for name in names},
        {pair: found for pair, found in scope.differences.items() if set(pair) <= set(names)},
    )
    return Scores([scope], scores.closest, scores.reference_count, scores.reference_distance, scores.dimensions, 0)


def test_a_smaller_spread_over_seeds_is_said() -> None:
    noise, reference = draws(len(SHOTS), 1), draws(24, 0)
    alike = torch.cat([noise[:1].expand(60, -1) + 0.2 * noise[:60], noise[60:]])
    scores = score_all(SHOTS, {"base": noise, "lora": alike}, reference, IMAGES)
    assert any("differ less from seed to seed" in sentence for sentence in side_effects(scores))


def test_too_few_images_of_either_kind_are_said(scores: Scores) -> None:
    assert [sentence for sentence in cautions(scores) if "too few" in sentence] == []
    few = score_all(SHOTS[:4], {"base": draws(4, 1), "lora": draws(4, 2)}, draws(6, 0), IMAGES[:6])
    text = " ".join(cautions(few))
    assert "4 images per candidate are too few" in text and "6 training images" in text and "dimensions (16)" in text
    assert "n these few images" in headline(few)
