"""The adversarial part at a run's end: when it begins, its learning rate, and what it leaves as it was."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from math import ceil
from pathlib import Path

import pytest
import torch
from adtruns import rows
from safetensors.torch import load_file
from torch import Tensor

from adt_plugin.core.schedule import AdversarialRate
from adt_plugin.host import resume
from adt_plugin.host.rate import RestartedRate
from tinyhost.run import CompletedRun, TinyRun

Options = tuple[str | Path, ...]

COSINE = ("--max_train_steps", "6", "--lr_scheduler", "cosine", "--save_every_n_steps", "2")


class Recorded(torch.optim.SGD):
    """Notes the rate of every step."""

    def __init__(self, rate: float) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        self.rates: list[float] = []

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.rates.append(self.param_groups[0]["lr"])


def walk(share: float, undos: ExitStack) -> tuple[Recorded, list[float], list[float]]:
    """Eight steps of a host's loop with a scheduler; the optimizer, the rates inside backward, and those the scheduler says."""
    optimizer = Recorded(0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 8)
    rate = RestartedRate(AdversarialRate(share, begin=4, end=8), [optimizer], undos)
    inside, said = [], []
    for step in range(8):
        with rate.during(step):
            inside.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        said.append(scheduler.get_last_lr()[0])
    return optimizer, inside, said


def test_the_optimizer_steps_with_the_restarted_rate_and_the_scheduler_never_sees_it() -> None:
    with ExitStack() as undos:
        optimizer, inside, said = walk(0.5, undos)
    assert optimizer.rates == pytest.approx([0.1, 0.0875, 0.075, 0.0625, 0.05, 0.05, 0.05, 0.025])
    assert inside == optimizer.rates  # what an optimizer that steps inside the backward pass finds
    with ExitStack() as undos:
        untouched, _, plain = walk(0.0, undos)
    assert said == plain and untouched.rates == pytest.approx([0.1 * (1 - step / 8) for step in range(8)])


def test_every_group_has_its_own_rate_back_where_they_are_stepped_one_at_a_time() -> None:
    """As DeepSpeed's ZeRO does: while one group is stepped, the optimizer has no other."""
    optimizer = Recorded(0.1)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.2})
    groups = optimizer.param_groups
    for group in groups:
        group["initial_lr"] = group["lr"]
    with ExitStack() as undos, RestartedRate(AdversarialRate(0.5, 0, 8), [optimizer], undos).during(0):
        for group in groups:
            optimizer.param_groups = [group]
            optimizer.step()
            assert [other["lr"] for other in groups] == [0.1, 0.2]
    assert optimizer.rates == pytest.approx([0.05, 0.1])


def test_without_a_scheduler_the_share_is_of_the_rate_that_was_there() -> None:
    """As schedule-free optimizers have it, for which sd-scripts makes no scheduler of torch's."""
    optimizer = Recorded(0.1)
    with ExitStack() as undos:
        with RestartedRate(AdversarialRate(0.5, 0, 8), [optimizer], undos).during(0):
            assert optimizer.param_groups[0]["lr"] == 0.05
        optimizer.step()
    assert optimizer.rates == [0.05] and optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("own", [{"lr": None}, {"lr": 0.1, "relative_step": True}], ids=["no rate", "relative step"])
def test_a_group_that_finds_its_own_rate_is_left_alone(own: dict[str, object]) -> None:
    optimizer = Recorded(0.1)
    optimizer.param_groups[0] |= own
    with ExitStack() as undos:
        with RestartedRate(AdversarialRate(0.5, 0, 8), [optimizer], undos).during(0):
            assert optimizer.param_groups[0]["lr"] == own["lr"]
        optimizer.step()
    assert optimizer.rates == [own["lr"]]


def test_the_runs_own_rate_is_there_while_a_state_is_saved_in_the_middle_of_a_turn() -> None:
    optimizer = Recorded(0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    with ExitStack() as undos:
        rate = RestartedRate(AdversarialRate(0.5, 0, 8), [optimizer], undos)
        found = []
        with rate.during(0):
            with rate.aside():
                found.append(optimizer.param_groups[0]["lr"])
            found.append(optimizer.param_groups[0]["lr"])
        with rate.aside():
            found.append(optimizer.param_groups[0]["lr"])
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [0.1, 0.05, 0.1, 0.1]


def test_the_hooks_go_with_the_run() -> None:
    with ExitStack() as undos:
        optimizer, _, _ = walk(0.5, undos)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    optimizer = Recorded(0.1)
    optimizer.param_groups[0] |= {"lr": torch.tensor(0.1), "initial_lr": torch.tensor(0.1)}
    with ExitStack() as undos, RestartedRate(AdversarialRate(0.5, 0, 8), [optimizer], undos).during(0):
        torch.testing.assert_close(optimizer.param_groups[0]["lr"], torch.tensor(0.05))
    torch.testing.assert_close(optimizer.param_groups[0]["lr"], torch.tensor(0.1))


def steps_of_the_host(total: int, batches: int, accumulation: int, initial: int, skips: bool) -> int:
    """Walk the loop of `train_network.py`, batch by batch, as it stands in v0.9 to v0.11."""
    epoch = ceil(batches / accumulation)
    epochs, first, remaining = ceil(total / epoch), 0, 0
    if initial:
        remaining = initial * accumulation if skips else 0
        first = (remaining if skips else initial) // epoch
    if remaining > 0:
        remaining -= first * batches
    now, made = remaining if skips and initial else 0, 0
    for _ in range(first, epochs):
        left_out, remaining = max(0, remaining), 0
        for batch in range(left_out, batches):
            synced = (batch - left_out + 1) % accumulation == 0 or batch == batches - 1
            now, made = now + synced, made + synced
            if now >= total:
                return made
    return made


@pytest.mark.parametrize("skips", [False, True], ids=["the epoch anew", "skipped"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("total", "batches", "initial"),
    [(2000, 200, 0), (2000, 200, 1700), (2000, 300, 1900), (2000, 800, 500), (1600, 2000, 1000), (60, 7, 30), (60, 7, 28)],
)
def test_the_steps_that_are_left_are_those_that_the_host_makes(
    total: int, batches: int, initial: int, accumulation: int, skips: bool
) -> None:
    args = argparse.Namespace(
        max_train_steps=total, gradient_accumulation_steps=accumulation, skip_until_initial_step=skips, initial_step=None
    )
    expected = steps_of_the_host(total, batches, accumulation, initial, skips)
    assert resume.steps_left(args, initial, lambda: batches) == expected


@pytest.mark.parametrize(
    ("given", "left"),
    [({}, 80), ({"initial_step": 50}, 60), ({"initial_epoch": 3}, 60), ({"initial_step": None, "initial_epoch": None}, 80)],
)
def test_options_overrule_the_hosts_count(given: dict[str, int], left: int) -> None:
    args = argparse.Namespace(max_train_steps=100, gradient_accumulation_steps=1, **given)
    assert resume.steps_left(args, 30, lambda: 20) == left


def test_the_hosts_count_is_read_from_its_state_and_is_0_where_there_is_none(tmp_path: Path) -> None:
    assert resume.host_count(tmp_path) == 0
    (tmp_path / resume.HOST_COUNT).write_text(json.dumps({"current_epoch": 2, "current_step": 7}))
    assert resume.host_count(tmp_path) == 7
    (tmp_path / resume.HOST_COUNT).write_text("{")
    assert resume.host_count(tmp_path) == 0


@pytest.fixture(scope="module")
def late(run_tiny: TinyRun, adt_options: Options):
    """Six steps under a cosine, the last two of them adversarial, at half of the initial rate."""
    return run_tiny(*COSINE, *adt_options, "--adt_begin", "0.6667", "--adt_lr", "0.5", "--save_state").check()


def test_turns_come_in_the_last_part_and_their_warmup_just_before_it(late) -> None:
    assert [(row["step"], row["warmup"]) for row in rows(late)] == [(3, True), (4, False), (5, False)]


def test_until_then_the_run_is_the_plain_one_bit_for_bit(late, run_tiny: TinyRun) -> None:
    plain = run_tiny(*COSINE, env={"ADT_PLUGIN_DISABLE": "1"}).check()
    for name in ("tiny-step00000002.safetensors", "tiny-step00000004.safetensors"):
        ours, theirs = (load_file(run.output_dir / name) for run in (late, plain))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = late.saved(), plain.saved()
    assert not all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_hosts_own_schedule_would_have_changed_less(late, run_tiny: TinyRun, adt_options: Options) -> None:
    """The cosine has come down to a quarter and less, so that the same turns move the weights less without a new rate."""
    own = run_tiny(*COSINE, *adt_options, "--adt_begin", "0.6667", "--adt_lr", "0").check()

    def moved(run) -> float:
        before, after = load_file(run.output_dir / "tiny-step00000004.safetensors"), run.saved()
        return sum(float((after[key].float() - before[key].float()).square().sum()) for key in after if "lora" in key) ** 0.5

    assert moved(late) > 1.5 * moved(own) > 0


def test_a_resumed_run_begins_where_the_whole_run_would(late, run_tiny: TinyRun, adt_options: Options) -> None:
    state = late.output_dir / "tiny-step00000002-state"
    options = ("--adt_begin", "0.6667", "--adt_lr", "0.5", "--resume", state)
    resumed = run_tiny(*COSINE, *adt_options, *options, "--skip_until_initial_step").check()
    assert [(row["step"], row["warmup"]) for row in rows(resumed)][:3] == [(3, True), (4, False), (5, False)]


def test_a_run_that_begins_its_epoch_anew_has_its_last_turn_in_its_last_step(
    late: CompletedRun, run_tiny: TinyRun, adt_options: Options
) -> None:
    """Without `--skip_until_initial_step`, which is how most people resume, sd-scripts makes more steps than are left."""
    state = late.output_dir / "tiny-step00000002-state"
    resumed = run_tiny(*COSINE, *adt_options, "--adt_begin", "0.6667", "--adt_lr", "0.5", "--resume", state, launcher="python")
    made = [row["step"] for row in rows(resumed.check())]
    steps = int(re.findall(r"steps:.*?(\d+)/(\d+) ", resumed.stderr)[-1][0])
    assert made[-1] == 2 + steps - 1
    assert f"ADT begins: {len(made)} turns to come" in " ".join(resumed.log.split())


def test_a_begin_after_the_end_is_refused_before_anything_is_loaded(run_tiny: TinyRun, adt_options: Options) -> None:
    run = run_tiny(*COSINE, *adt_options, "--adt_begin", "1800")
    assert run.returncode == 1
    assert "lower --adt_begin to step 5, or train longer (the run ends at step 6)" in " ".join(run.stderr.split())


# What the optimizer remembers of the plain steps


def averages(run: CompletedRun) -> list[Tensor]:
    """Of squared gradients, in the state that a run left: of the text encoder's part, and of the UNet's."""
    found = torch.load(run.check().output_dir / "tiny-state" / "optimizer.bin", weights_only=True)
    groups = [group["params"] for group in found["param_groups"]]
    assert len(groups) == 2
    return [torch.cat([found["state"][number]["exp_avg_sq"].flatten() for number in group]) for group in groups]


def larger_by(run: CompletedRun, other: CompletedRun) -> list[float]:
    """The median ratio of both averages, by part."""
    pairs = zip(averages(run), averages(other), strict=True)
    return [float((ours[theirs > 0] / theirs[theirs > 0]).median()) for ours, theirs in pairs]


@pytest.mark.parametrize(
    ("begin", "grows"),
    [(("--adt_begin", "3", "--adt_warmup", "1"), True), (("--adt_begin", "0", "--adt_warmup", "3"), False)],
    ids=["after plain steps", "from the start"],
)
def test_a_run_tells_its_optimizer_at_the_first_turn_after_plain_steps(
    run_tiny: TinyRun, adt_options: Options, begin: Options, grows: bool
) -> None:
    """The UNet's part alone: turns do not train the text encoder, whose steps stay as long as they were."""
    options = ("--max_train_steps", "4", "--save_state_on_train_end", *adt_options, *begin, "--adt_lr", "0")
    without = run_tiny(*options, "--adt_weight", "0")
    if grows:
        of_next_to_no_weight = run_tiny(*options, "--adt_weight", "5", "--adt_max_grad_ratio", "1e-6")
        assert larger_by(of_next_to_no_weight, without) == pytest.approx([1.0, 1.0], abs=0.05)
    text, unet = larger_by(run_tiny(*options, "--adt_weight", "5"), without)
    assert text == pytest.approx(1.0, abs=0.05)
    assert unet > 15 if grows else unet < 15
