"""What the figures say, in sentences; and what they cannot say."""

from __future__ import annotations

from collections.abc import Mapping

from adt_plugin.compare.scores import Figure, Scores

FEW_IMAGES, FEW_REFERENCES = 50, 20
MOST_PAIRS = 4
COPIES = 0.5
"""A candidate whose images are nearer to training images than half of what these are to each other may copy."""


def headline(scores: Scores) -> str:
    """Return the sentence on top of the page: which candidate is nearest to the training images, and how surely."""
    scope = scores.scopes[0]
    ranked = ranking(scores)
    if len(ranked) < 2:
        return "There are too few images for a distance to the training images: add prompts or seeds."
    best, second = ranked[:2]
    margin, distance = kid_difference(scores, second, best), scope.figures[best]["kid"].value
    few = scope.images < FEW_IMAGES or scores.reference_count < FEW_REFERENCES
    lead = f"{'on these few images ' if few else ''}{best} comes nearest to the training images (KID {distance:.3f})"
    rest = f"{second}, the next, is {margin.value:.3f} farther"
    if not margin.certain:
        return f"No winner: {lead}, but {rest}, which may be chance ({interval(margin)})."
    lead = f"O{lead[1:]}" if few else lead
    return f"{lead}; {rest}, more than the choice of images explains ({interval(margin)})."


def ranking(scores: Scores) -> list[str]:
    """Return the candidates that have a KID over all images, the nearest to the training images first."""
    kids = {name: figures["kid"].value for name, figures in scores.scopes[0].figures.items() if "kid" in figures}
    return sorted(kids, key=lambda name: kids[name])


def standings(scores: Scores) -> list[str]:
    """Return what the headline leaves out: how the candidates after the two nearest stand, and which the base is ahead of."""
    base, ranked, found = next(iter(scores.scopes[0].figures)), ranking(scores), []
    for name, other in list(zip(ranked[1:], ranked[2:], strict=False))[:MOST_PAIRS]:
        margin = kid_difference(scores, other, name)
        farther = f"{other} is {margin.value:.3f} farther than {name}"
        said = farther if margin.certain else f"{name} and {other} cannot be told apart by their distance"
        found.append(f"{said} ({interval(margin)}).")
    margins = {name: kid_difference(scores, name, base) for name in ranked if base in ranked and name != base}
    worse = [name for name, margin in margins.items() if margin.certain and margin.value > 0]
    if worse:
        found.append(
            f"Farther from the training images than the base: {', '.join(worse)}. Training was too short, too long, or on "
            "other images than those of --reference."
        )
    return found


def kid_difference(scores: Scores, name: str, other: str) -> Figure:
    """Return the difference of two candidates' KID, the first minus the second, over all images."""
    differences = scores.scopes[0].differences
    if (name, other) in differences:
        return differences[name, other]["kid"]
    turned = differences[other, name]["kid"]
    low, high = (None if bound is None else -bound for bound in (turned.high, turned.low))
    return Figure(-turned.value, low, high)


def interval(figure: Figure, digits: int = 3) -> str:
    """Return an interval in words."""
    if figure.low is None or figure.high is None:
        return "no interval"
    return f"95 % interval {figure.low:.{digits}f} to {figure.high:.{digits}f}"


def side_effects(scores: Scores) -> list[str]:
    """Return one sentence for each thing that a candidate pays for: copies, seeds that matter less."""
    scope = scores.scopes[0]
    base, *others = scope.figures
    found = []
    for name in others:
        copies = scope.figures[name].get("nearest")
        if copies is not None and copies.value < COPIES:
            found.append(
                f"{name} may copy: its images are {copies.value:.2f} times as far from a training image as training images are "
                "from each other. Look at the nearest pairs below."
            )
        fall = scope.differences[name, base].get("diversity")
        if fall is not None and fall.certain and fall.value < 0:
            found.append(f"With {name}, images of one prompt differ less from seed to seed than the base's ({interval(fall)}).")
    found.extend(_disagreements(scope.differences, base, others))
    return found


def _disagreements(differences: Mapping[tuple[str, str], Mapping[str, Figure]], base: str, others: list[str]) -> list[str]:
    """Return a sentence for each candidate that has come nearer by KID and lost recall for certain."""
    found = []
    for name in others:
        kid, recall = (differences[name, base].get(metric) for metric in ("kid", "recall"))
        if kid and recall and kid.certain and kid.value < 0 and recall.certain and recall.value < 0:
            found.append(f"{name} is nearer to the training images but covers fewer of them than the base: it may be narrower.")
    return found


def cautions(scores: Scores) -> list[str]:
    """Return what keeps the figures from meaning much: too few images, of either kind."""
    scope, found = scores.scopes[0], []
    if scope.images < FEW_IMAGES:
        found.append(
            f"{scope.images} images per candidate are too few for distances of sets: {FEW_IMAGES} or more (prompts x seeds) "
            "make KID mean something. The images themselves say more."
        )
    if scores.reference_count < FEW_REFERENCES:
        found.append(
            f"{scores.reference_count} training images describe a kind of image poorly: {FEW_REFERENCES} or more are better."
        )
    if min(scope.images, scores.reference_count) <= scores.dimensions:
        found.append(
            f"The Fréchet distance needs more images than its features have dimensions ({scores.dimensions}): compare its "
            "order here, not its height."
        )
    return found


LIMITS = (
    "The figures say how near the images are to the training images in the eyes of DINOv2, with the same noise, prompts and "
    "sampler for every candidate. They do not say whether the images are beautiful, whether hands have five fingers, or "
    "whether a prompt was followed; a model that copies its training images is nearest of all. Intervals cover the choice of "
    "seeds, prompts and training images, not the chance of training: another run with the same settings may rank differently. "
    "Of several candidates, the best one looks a little better than it is."
)
