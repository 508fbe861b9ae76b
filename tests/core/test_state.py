"""Saving and restoring a run's turns: bit for bit, or refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.diffusion.denoiser import Guided
from adt_plugin.core.run import state
from adt_plugin.core.turn import AdversarialTurn
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn


class Loop:
    """The core's own training loop: a network with dropout, its optimizer, and the turns."""

    def __init__(self) -> None:
        self.net, self.turn = ToyDenoiser(dropout=0.2), toy_turn(warmup=2, cfg_scale="1:7")
        self.scales: list[float] = []
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
        self.step = 0

    def run(self, steps: int) -> list[float]:
        """The losses of the discriminator."""
        losses = []
        for _ in range(steps):
            torch.manual_seed(1000 + self.step)  # the host's own draws
            latents = toy_latents(seed=self.step)
            diffusion_backward(self.turn, self.net, latents)
            guided = Guided(self.net, lambda x, t: self.net(x + 0.5, t), 4.0)
            report = self.turn(guided, latents)
            losses.append(report.loss_d)
            self.scales.append(report.cfg_scale)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
        return losses


def tensors(turn: AdversarialTurn) -> dict[str, torch.Tensor]:
    return state.capture(turn, turn.config).tensors


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_three_steps_and_three_resumed_ones_are_six(tmp_path: Path) -> None:
    whole, half, resumed = Loop(), Loop(), Loop()
    losses = whole.run(6)
    assert half.run(3) == losses[:3]
    state.write(state.capture(half.turn, half.turn.config, half.step), tmp_path)
    resumed.net.load_state_dict(half.net.state_dict())
    resumed.optimizer.load_state_dict(half.optimizer.state_dict())
    read = state.read(tmp_path, resumed.turn.config, resumed.turn.discriminator)
    state.restore(resumed.turn, read)
    resumed.step = read.manifest.step
    assert_same(tensors(resumed.turn), tensors(half.turn))
    assert resumed.run(3) == losses[3:]
    assert half.scales + resumed.scales == whole.scales and len(set(whole.scales)) == 6
    assert_same(tensors(resumed.turn), tensors(whole.turn))
    assert_same(dict(resumed.net.named_parameters()), dict(whole.net.named_parameters()))
    assert resumed.turn.turns == 6


def test_a_state_holds_every_part_and_the_manifest_says_whose_it_is(tmp_path: Path) -> None:
    loop = Loop()
    loop.run(3)
    state.write(state.capture(loop.turn, loop.turn.config, 3), tmp_path)
    saved = load_file(tmp_path / state.TENSORS)
    prefixes = {name.split(".")[0] + "." for name in saved}
    assert prefixes == {state.HEADS, state.MOMENTS, state.BALANCE, state.GENERATORS, state.HISTORY}
    manifest = json.loads((tmp_path / state.MANIFEST).read_text())
    assert (manifest["turns"], manifest["step"], manifest["backbone"]) == (3, 3, "facebook/dinov2-base")
    assert sorted(path.name for path in tmp_path.iterdir()) == [state.MANIFEST, state.TENSORS]


def test_a_state_from_before_the_first_turn_restores(tmp_path: Path) -> None:
    fresh, other = toy_turn(), toy_turn()
    state.write(state.capture(fresh, fresh.config), tmp_path)
    state.restore(other, state.read(tmp_path, other.config, other.discriminator))
    assert_same(tensors(fresh), tensors(other))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    loop = Loop()
    loop.run(2)
    state.write(state.capture(loop.turn, loop.turn.config, 2), tmp_path)
    return tmp_path


def refusal(folder: Path, turn: AdversarialTurn | None = None, **options: object) -> str:
    turn = turn or toy_turn()
    with pytest.raises(state.StateError) as refused:
        state.read(folder, dataclasses.replace(turn.config, **options), turn.discriminator)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kept", [0, 7, 100, 5000])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    whole = (saved / state.TENSORS).read_bytes()
    (saved / state.TENSORS).write_bytes(whole[:kept])
    assert "is no whole discriminator state" in refusal(saved)


def test_a_missing_file_and_one_without_manifest_are_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "is no whole discriminator state" in refusal(tmp_path_factory.mktemp("empty"))
    from safetensors.torch import save_file

    save_file(load_file(saved / state.TENSORS), saved / state.TENSORS)
    assert "is no whole discriminator state" in refusal(saved)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"backbone": "facebook/dinov2-small"}, "--adt_backbone facebook/dinov2-base, this run has facebook/dinov2-small"),
        ({"disc_type": "unary"}, "--adt_disc_type siamese, this run has unary"),
        ({"disc_width": 64}, "--adt_disc_width 256, this run has 64"),
        ({"blocks": "1,2"}, "--adt_blocks auto, this run has 1,2"),
    ],
)
def test_another_discriminator_is_refused_by_its_flag(saved: Path, options: dict[str, object], flag: str) -> None:
    assert flag in refusal(saved, **options)


def test_another_format_is_refused(saved: Path) -> None:
    turn = toy_turn()
    read = state.read(saved, turn.config, turn.discriminator)
    state.write(dataclasses.replace(read, manifest=dataclasses.replace(read.manifest, format="0")), saved)
    assert "has format 0, this plugin reads 1" in refusal(saved)


def test_a_wrong_shape_is_refused_by_the_tensors_name(saved: Path) -> None:
    turn = toy_turn()
    turn.discriminator.score.heads[1].standardize.mean = torch.zeros(5)
    assert "score.heads.1.standardize.mean is (12,), expected (5,)" in refusal(saved, turn)


def test_nothing_is_unpickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    turn = toy_turn()
    state.restore(turn, state.read(saved, turn.config, turn.discriminator))


WRITER = """
import itertools, sys
from pathlib import Path
from adt_plugin.core.run import state
from toys import toy_turn
turn = toy_turn()
for turn.turns in itertools.count(1):
    state.write(state.capture(turn, turn.config, turn.turns), Path(sys.argv[1]))
    print(turn.turns, flush=True)
"""


def test_a_killed_process_leaves_the_last_state_loadable(tmp_path: Path) -> None:
    """kill -9 at moments that fall anywhere in a write, over the state of the process before."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    turn = toy_turn()
    for delay in (0.0, 0.011, 0.023, 0.042):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        written = int(writer.stdout.readline())
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert state.read(tmp_path, turn.config, turn.discriminator).manifest.turns >= written


def test_the_manifest_names_a_local_backbone_without_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "my_backbone"
    folder.mkdir()
    assert state.Manifest.from_config(ADTConfig(backbone=str(folder))).backbone == "my_backbone"
