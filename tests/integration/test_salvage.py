"""What is left of a run whose weights are not finite any more."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adt_plugin.core.run.state import TENSORS
from adt_plugin.host import salvage
from tinyhost.run import TinyRun
from toys import toy_discriminator

Options = tuple[str | Path, ...]


def saved(path: Path, value: float, age: float) -> Path:
    """A file of weights of this value, so many seconds old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(3), "b": torch.tensor([1.0, value])}, path)
    for each in (path, path.parent):
        os.utime(each, (1e9 - age, 1e9 - age))
    return path


def test_the_newest_finite_state_and_file_are_named(tmp_path: Path) -> None:
    nan = float("nan")
    for step, value in enumerate((1.0, 2.0, float("inf"), nan), 1):
        saved(tmp_path / f"x-step{step:08d}-state" / "model.safetensors", value, age=10 - step)
        saved(tmp_path / f"x-step{step:08d}.safetensors", value if step > 1 else nan, age=10 - step)
    saved(tmp_path / "x-adt-stopped-state" / "model.safetensors", 1.0, age=0)
    for other in ("another", "x_adt", "x-finished"):
        saved(tmp_path / f"{other}-state" / "model.safetensors", 1.0, age=0)
        saved(tmp_path / f"{other}.safetensors", 1.0, age=0)
    saved(tmp_path / "x-step00000005-state" / TENSORS, 1.0, age=0)  # DeepSpeed has pickled the weights beside it
    (tmp_path / "x-state").mkdir()  # its weights are pickled, or not there at all
    assert salvage.last_finite_state(tmp_path, "x") == tmp_path / "x-step00000002-state"
    assert salvage.last_finite_checkpoint(tmp_path, "x") == tmp_path / "x-step00000002.safetensors"


@pytest.mark.parametrize("ending", ["", "-000003", "-step00000100"])
def test_a_name_is_taken_letter_by_letter(tmp_path: Path, ending: str) -> None:
    saved(tmp_path / f"x[1]{ending}.safetensors", 1.0, age=0)
    assert salvage.last_finite_checkpoint(tmp_path, "x[1]") == tmp_path / f"x[1]{ending}.safetensors"


def test_a_state_is_finite_if_all_its_files_are_and_a_damaged_file_is_not(tmp_path: Path) -> None:
    saved(tmp_path / "x-state" / "model.safetensors", 1.0, age=0)
    saved(tmp_path / "x-state" / "adt_state.safetensors", float("nan"), age=0)
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    assert salvage.last_finite_state(tmp_path, "x") is None and salvage.last_finite_checkpoint(tmp_path, "x") is None
    text = salvage.advice(408, 612, tmp_path, "x", "1e9")
    assert text.startswith(
        "408 of 612 tensors of the run are not finite any more, so no state was saved to go on from; there is no"
    )
    assert "lower --learning_rate (it is 1e9)" in text and "\n" not in text


def spoil_weights(net: nn.Linear, optimizer: torch.optim.Optimizer, discriminator: nn.Module) -> None:
    net.weight.data[0, 0] = float("nan")


def spoil_moments(net: nn.Linear, optimizer: torch.optim.Optimizer, discriminator: nn.Module) -> None:
    optimizer.state[net.bias]["exp_avg_sq"].fill_(float("inf"))


def spoil_heads(net: nn.Linear, optimizer: torch.optim.Optimizer, discriminator: nn.Module) -> None:
    next(discriminator.parameters()).data.fill_(float("nan"))


@pytest.mark.parametrize("spoil", [None, spoil_weights, spoil_moments, spoil_heads])
def test_weights_moments_and_heads_are_looked_at(spoil) -> None:  # noqa: ANN001
    net, discriminator = nn.Linear(2, 2), toy_discriminator()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if spoil:
        spoil(net, optimizer, discriminator)
    tensors = list(salvage.carried_on(SimpleNamespace(_optimizers=[optimizer]), discriminator))
    assert salvage.count_unsound(tensors) == (int(spoil is not None), len(tensors))
    assert len(tensors) == 2 + 2 * 3 + len(list(discriminator.parameters()))


def test_a_run_that_diverges_offers_nothing_to_go_on_from_that_is_not_finite(run_tiny: TinyRun, adt_options: Options) -> None:
    saving = ("--save_state", "--save_every_n_steps", "1")
    run = run_tiny("--max_train_steps", "12", "--learning_rate", "1e30", *saving, *adt_options, "--adt_max_bad_turns", "3")
    assert run.returncode == 1
    sentence = " ".join(run.stderr.split("adt_plugin: ")[1].split())
    assert "tensors of the run are not finite any more, so no state was saved" in sentence
    assert "lower --learning_rate (it is 1e+30)" in sentence and "goes on from there" not in sentence
    assert not (run.output_dir / "tiny-adt-stopped-state").exists()
    named = [path for path in run.output_dir.rglob("*.safetensors") if str(path.parent) in sentence or str(path) in sentence]
    assert ("there is no finite state" in sentence) == (not any(path.parent.name.endswith("-state") for path in named))
    offered = [path for path in named if f"{path.parent} (--resume)" in sentence or f"{path} (--network" in sentence]
    assert all(tensor.isfinite().all() for path in offered for tensor in load_file(path).values() if tensor.is_floating_point())
