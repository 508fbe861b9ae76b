"""What is left of a run whose weights are not finite any more."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
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


def test_files_of_other_formats_are_said_to_be_not_looked_into(tmp_path: Path) -> None:
    def said() -> str:
        return salvage.advice(1, 2, tmp_path, "x", "1")

    assert "no finite file was saved" in said()
    for other in ("x-finished.ckpt", "y.pt"):  # another run's
        (tmp_path / other).touch()
    (tmp_path / "x").mkdir()  # no model
    assert "no finite file was saved" in said()
    for age, path in enumerate((tmp_path / "x-000002.ckpt", tmp_path / "x-step00000004.pt")):
        path.touch()
        os.utime(path, (1e9 + age, 1e9 + age))
        assert "no finite file was saved" not in said()
        assert f"whether {path} or one from before it is finite is not known: files that are not .safetensors" in said()
    (tmp_path / "x" / "model_index.json").touch()  # a folder of diffusers, newest of all
    assert f"whether {tmp_path / 'x'} or one" in said()
    finite = saved(tmp_path / "x.safetensors", 1.0, age=0)
    assert f"the last finite file is {finite}" in said() and "not known" not in said()


def spoil_weights(net: nn.Linear, optimizer: torch.optim.Optimizer, discriminator: nn.Module) -> None:
    net.weight.data[0, 0] = float("nan")


def spoil_moments(net: nn.Linear, optimizer: torch.optim.Optimizer, discriminator: nn.Module) -> None:
    optimizer.state[net.bias]["exp_avg_sq"].fill_(float("inf"))


def spoil_heads(net: nn.Linear, optimizer: torch.optim.Optimizer, discriminator: nn.Module) -> None:
    next(discriminator.parameters()).data.fill_(float("nan"))


@pytest.mark.parametrize("spoil", [None, spoil_weights, spoil_moments, spoil_heads])
def test_weights_moments_and_the_plugins_own_are_looked_at(spoil) -> None:  # noqa: ANN001
    net, discriminator = nn.Linear(2, 2), toy_discriminator()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if spoil:
        spoil(net, optimizer, discriminator)
    own = list(discriminator.parameters())
    tensors = list(salvage.carried_on(SimpleNamespace(_optimizers=[optimizer]), own))
    assert salvage.count_unsound(tensors) == (int(spoil is not None), len(tensors))
    assert len(tensors) == 2 + 2 * 3 + len(own)


def test_moments_are_found_however_deep_they_lie_and_a_number_that_is_nan_counts() -> None:
    inf, nan = torch.tensor([float("inf")]), float("nan")
    saved = {"state": {0: {"blocks": [torch.ones(1), (inf, torch.ones(1, dtype=torch.uint8))]}}, "d": nan, "growth_rate": 1e999}
    assert salvage.count_unsound(salvage.tensors_in(saved)) == (2, 3)


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this PyTorch has no float8")
def test_float8_is_looked_at() -> None:
    tensors = [torch.tensor([1.0, value]).to(torch.float8_e4m3fn) for value in (2.0, float("nan"))]
    assert salvage.count_unsound(tensors) == (1, 2)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters())


def lion_8bit(net: nn.Module) -> torch.optim.Optimizer:
    """Of which a NaN in the gradient spoils the moments and not the weights."""
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").optim.Lion8bit(net.parameters())


@pytest.mark.parametrize(("make", "gradient"), [(adamw, 1e30), (lion_8bit, float("nan"))])
def test_a_state_of_finite_weights_and_spoilt_moments_is_not_named(
    make: Callable[[nn.Module], torch.optim.Optimizer], gradient: float, tmp_path: Path
) -> None:
    accelerator, net = Accelerator(cpu=True), nn.Linear(128, 128)  # bitsandbytes leaves small tensors in 32 bits
    net, optimizer = accelerator.prepare(net, make(net))
    for step, scale in enumerate((1.0, gradient), 1):
        (net(torch.ones(1, 128)).sum() * scale).backward()
        optimizer.step()
        optimizer.zero_grad()
        state = tmp_path / f"x-step{step:08d}-state"
        accelerator.save_state(str(state))
        os.utime(state, (1e9 + step, 1e9 + step))
    assert all(weight.isfinite().all() for weight in load_file(state / "model.safetensors").values())
    assert salvage.last_finite_state(tmp_path, "x") == tmp_path / "x-step00000001-state"


class Code:
    """What a pickle can do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_moments_that_cannot_be_read_without_running_code_are_not_named(tmp_path: Path) -> None:
    for step, write in enumerate((torch.save, lambda moments, path: path.write_bytes(pickle.dumps(moments))), 1):
        saved(tmp_path / f"x-step{step:08d}-state" / "model.safetensors", 1.0, age=0)
        write({"state": Code(tmp_path / "ran")}, tmp_path / f"x-step{step:08d}-state" / "optimizer.bin")
    saved(tmp_path / "x-state" / "model.safetensors", 1.0, age=0)
    (tmp_path / "x-state" / "optimizer.bin").touch()
    assert salvage.last_finite_state(tmp_path, "x") is None
    assert not (tmp_path / "ran").exists()


def test_a_run_whose_moments_overflow_is_not_offered_its_own_states(run_tiny: TinyRun, adt_options: Options) -> None:
    """A gradient of 1e22 is finite and its square is not: AdamW then stands still, and so does whatever resumes it."""
    before = run_tiny("--save_state", "--save_every_n_steps", "1", *adt_options)
    too_much = ("--network_alpha", "1e25", "--learning_rate", "1e-30", "--max_grad_norm", "0", "--max_train_steps", "4")
    saving = ("--save_state", "--save_every_n_steps", "3")
    run = run_tiny(*too_much, *saving, *adt_options, output_dir=before.output_dir, env={"COLUMNS": "1000"})
    assert before.returncode == run.returncode == 0
    weights = run.saved("tiny-step00000003-state/model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    said = " ".join(run.log.split())
    assert "What is saved now is of no use" in said
    assert f"the last finite state is {run.output_dir / 'tiny-state'} (--resume)" in said  # that of the run before


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
