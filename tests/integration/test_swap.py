"""`--blocks_to_swap` on an emulated device: the host's own offloader, order and hooks, with and without: the same weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from adtruns import assert_trained_with_adt, observed
from torch import Tensor, nn

from adt_plugin.core.diffusion.unroll import Unroll
from adt_plugin.host.swap import forward_only, walking_forward_only
from tinyhost import families
from tinyhost.families import family_of
from tinyhost.models import HostModel, TinyModel, write_tiny_model

DEPTH = 4
ROUNDING = 1e-5
"""Three steps move a weight by .003. Without `--adt` swapped blocks of SD3 move some 2e-6 elsewhere already: FLUX and Lumina
are the same bit for bit."""
SWAPPING = Path(__file__).with_name("swapping.py")
Options = tuple[str | Path, ...]


@pytest.fixture
def deep_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyModel]:
    """Tiny models with blocks enough to swap two: written here, loaded in the host's process.

    A family reads its depth when it is loaded, and so it is loaded anew before and after.
    """
    deep = []

    def write(family: str) -> HostModel:
        monkeypatch.setenv("TINYHOST_DEPTH", str(DEPTH))
        deep.append(importlib.reload(families.load(family)))
        return write_tiny_model(family, tmp_path / "model")

    yield write
    monkeypatch.undo()
    for module in deep:
        importlib.reload(module)


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("flux_train_network.py", ("--gradient_checkpointing",)),
        ("sd3_train_network.py", ()),
        ("lumina_train_network.py", ()),
        ("anima_train_network.py", ("--adt_cfg_scale", "2")),
        ("hunyuan_image_train_network.py", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_swapped_blocks_train_the_same_weights(
    host_dir: Path,
    deep_model: TinyModel,
    tiny_images: Path,
    adt_options: Options,
    script: str,
    options: Options,
    tmp_path: Path,
    cell: Callable[..., None],
) -> None:
    """The emulated device refuses a call of a block that is on the CPU, so that a wrong order ends the run."""
    cell(script, " ".join(map(str, ("--blocks_to_swap", "2", *options))))
    if not (host_dir / script).is_file():
        pytest.skip(f"{host_dir.name} has no {script}")
    model, runs, notes = deep_model(family_of(script)), [], []
    for name, swap in (("kept", ()), ("swapped", ("--blocks_to_swap", "2"))):
        given = ("--max_train_steps", 3, *adt_options, *options, "--adt_memory", "auto", *swap)
        folder = tmp_path / name
        folder.mkdir()
        run, note = observed(SWAPPING, script, given, host_dir, model, tiny_images, folder)
        assert_trained_with_adt(run, turns=3)
        runs.append(run)
        notes.append(note)
    assert notes[0]["moves"] == 0 < notes[1]["moves"]
    walks = 3 + 2  # three turns, and the followed image before the first turn and after the second
    assert notes[1]["forward_only"] in (walks, 2 * walks)  # one offloader or two
    kept, swapped = (run.saved() for run in runs)
    torch.testing.assert_close(swapped, kept, rtol=0, atol=ROUNDING)


class Offloader:
    def __init__(self) -> None:
        self.modes: list[bool] = []

    def set_forward_only(self, forward_only: bool) -> None:
        self.modes.append(forward_only)


class Network(nn.Module):
    """As the host's, with its two seams."""

    def __init__(self) -> None:
        super().__init__()
        self.offloader_double, self.offloader_single, self.offloader = Offloader(), Offloader(), None
        self.prepared = 0

    def prepare_block_swap_before_forward(self) -> None:
        self.prepared += 1


def test_a_walk_is_forward_only_and_training_goes_on_after_it() -> None:
    network, seen = Network(), []

    def unroll(latents: Tensor) -> Unroll:
        seen.append(network.offloader_double.modes[-1])
        return Unroll(latents, [])

    walking_forward_only(unroll, network)(torch.zeros(1))  # type: ignore[arg-type, call-arg]
    assert seen == [True] and network.prepared == 1
    assert network.offloader_double.modes == network.offloader_single.modes == [True, False]


def test_blocks_are_put_in_their_places_after_a_walk_that_was_broken_off() -> None:
    network = Network()
    with pytest.raises(KeyError), forward_only(network):
        raise KeyError
    assert network.prepared == 2 and network.offloader_single.modes == [True, False]


def test_a_network_whose_blocks_stay_is_left_alone() -> None:
    with forward_only(nn.Linear(1, 1)):
        pass
