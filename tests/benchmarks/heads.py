"""`python -m benchmarks.heads`: what the discriminator's heads tell apart, by the start of the path; resumable.

On the miniature's held-out digits, which neither heads nor denoiser have seen: the share of pairs in which two views of a real
image score higher than a generated one beside it. One half is chance.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adt_plugin.core.diffusion.unroll import noised_start, unroll
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.demo import report
from adt_plugin.demo.base import Base, load_base
from adt_plugin.demo.cli import positive
from adt_plugin.demo.data import Digits, decode, encode, load_splits
from adt_plugin.demo.finetune import Budget, Plan, build_turn, finetune, tunable_copy
from adt_plugin.demo.models import UNet
from adt_plugin.demo.variants import ADT
from benchmarks import DOCUMENTS
from benchmarks.ablations import FROZEN
from benchmarks.counting import steps_for
from benchmarks.miniature import Plan as BenchPlan
from benchmarks.miniature import what_is_read
from benchmarks.store import CellStore

BEFORE, WARM, AFTER, AGAIN = (
    "random heads",
    "after the warm-up",
    "after the run",
    "after the run, images of before it",
)
STARTS = range(1, 6)
STATISTICS = 32
"""Steps after which the heads know the statistics of their features."""


@torch.no_grad()
def accuracy(turn: AdversarialTurn, unet: UNet, digits: Digits) -> dict[str, float]:
    """Return start -> the share of pairs that the turn's heads tell apart; the model's images are drawn from fixed noise."""
    denoiser, latents = partial(unet, labels=digits.labels), encode(digits.images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    found = {}
    for start in STARTS:
        noised = noised_start(turn.sampler, latents, noise, turn.config.steps, start)
        path = unroll(denoiser, turn.sampler, noised, [0] * start, [], record=False)
        features = turn.discriminator.features_of(decode(path.latents), digits.images)
        score_real, score_gen = turn.discriminator.scores(features)
        found[str(start)] = float((score_real > score_gen).float().mean())
    return found


def measured(base: Base, train: Digits, heldout: Digits, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Run ADT as it ships, and look at its heads on the way; return moment -> start -> share."""
    plan = ADT.plan
    assert plan is not None and plan.adt is not None
    untrained, turn = (build_turn(base, replace(plan, adt=adt), seed) for adt in (replace(plan.adt, **FROZEN), plan.adt))
    assert untrained is not None and turn is not None
    warm(base, train, untrained, plan, seed)
    found = {BEFORE: accuracy(untrained, base.unet, heldout)}
    unet = tunable_copy(base.unet)

    def look(budget: Budget) -> None:
        if budget.taken == 1:  # one step with a turn has hardly moved anything
            found[WARM] = accuracy(turn, base.unet, heldout)

    finetune(unet, train, plan, Budget(steps=steps), turn, seed, look)
    return found | {AFTER: accuracy(turn, unet, heldout), AGAIN: accuracy(turn, base.unet, heldout)}


def warm(base: Base, train: Digits, turn: AdversarialTurn, plan: Plan, seed: int) -> None:
    """Let the heads that do not learn collect their statistics, beside a model that is thrown away."""
    finetune(tunable_copy(base.unet), train, plan, Budget(steps=STATISTICS), turn, seed)


def table(results: dict[str, Any]) -> str:
    """Return the table of docs/method.md from a store's label -> result: means over the seeds."""
    moments = list(next(iter(results.values())))
    rows = [
        [moment, *(f"{statistics.fmean(cell[moment][str(start)] for cell in results.values()):.0%}" for start in STARTS)]
        for moment in moments
    ]
    return report.table(["held-out pairs told apart", *(f"s = {start}" for start in STARTS)], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these arguments, or with the command line's."""
    parser = argparse.ArgumentParser("python -m benchmarks.heads", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=positive, default=3, help="runs (default: 3)")
    parser.add_argument("--out", type=Path, default=DOCUMENTS, help="folder of heads.json (default: docs/benchmarks)")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    base, splits, store = load_base(), load_splits(), CellStore(given.out / "heads.json", "miniature")
    assert ADT.plan is not None
    steps = steps_for(ADT.plan, BenchPlan.units)
    for seed in range(given.seeds):
        run = partial(measured, base, splits.train, splits.heldout, seed, steps)
        store.get_or_run(f"heldout: {ADT.name}, seed {seed}", (what_is_read(ADT), steps, seed), run)
    print(table(store.results()[store.group]))


if __name__ == "__main__":
    main()
