"""What is read of DeepSpeed's engine, on one that is made up; `test_deepspeed.py` runs the real one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from torch import nn

from adt_plugin.core.errors import ConfigError
from adt_plugin.host import deepspeed
from adt_plugin.host.checks import check_processes
from adt_plugin.host.salvage import carried_on


class DeepSpeedWrapper(nn.Module):
    """As the host's."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)


class Engine(nn.Module):
    """What the host's accelerator makes of it."""


def accelerator(third_stage: bool = False, **changes: object) -> SimpleNamespace:
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(is_zero3=lambda: third_stage))
    state = SimpleNamespace(deepspeed_plugin=plugin)
    return SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, num_processes=1, state=state, **changes)


def test_the_denoiser_is_the_module_that_the_host_calls() -> None:
    linear, prepared = nn.Linear(1, 1), Engine()
    assert deepspeed.prepared_as(linear, prepared, ("Linear",)) is prepared
    assert deepspeed.prepared_as(linear, prepared, ("Bilinear",)) is None
    wrapper = DeepSpeedWrapper(network=nn.Identity(), unet=linear)
    assert deepspeed.prepared_as(wrapper, prepared, ("Linear",)) is linear
    assert deepspeed.prepared_as(wrapper, prepared, ("Bilinear",)) is None


def test_without_an_engine_the_optimizer_is_torchs_own() -> None:
    inside = SimpleNamespace(optimizer="inside")  # some optimizers of torch wrap another, too
    assert deepspeed.engine_of(SimpleNamespace()) is None
    assert deepspeed.engine_of(SimpleNamespace(deepspeed_engine_wrapped=None)) is None
    assert deepspeed.stepped_by(None, inside) is inside
    assert deepspeed.stepped_by(Engine(), inside) == "inside"


@pytest.mark.parametrize(("optimizer", "scale"), [(SimpleNamespace(cur_scale=2**16), 65536.0), (SimpleNamespace(), 1.0)])
def test_the_loss_scale_is_that_of_its_optimizer_if_it_has_one(optimizer: SimpleNamespace, scale: float) -> None:
    assert deepspeed.loss_scale_of(SimpleNamespace(optimizer=optimizer)) == scale


def test_a_skipped_step_is_told_from_those_before() -> None:
    engine = SimpleNamespace(skipped_steps=3)
    skipped = deepspeed.skipping(engine)
    assert not skipped()
    engine.skipped_steps += 1
    assert skipped() and not deepspeed.skipping(engine)()


def test_accelerates_configuration_may_not_ask_for_a_third_stage() -> None:
    check_processes(accelerator(), deepspeed=True)
    with pytest.raises(ConfigError, match="stage 3, which accelerate's configuration asks for, cannot be combined with --adt"):
        check_processes(accelerator(third_stage=True), deepspeed=True)
    with pytest.raises(ConfigError, match="--adt does not work under DEEPSPEED: use sd-scripts' --deepspeed, turn it off in"):
        check_processes(accelerator())


def test_the_weights_of_all_processes_are_looked_at() -> None:
    """Its optimizer holds a part of them in each."""
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    engine = SimpleNamespace(module=network)
    part = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    of_run = accelerator(_optimizers=[part], deepspeed_engine_wrapped=SimpleNamespace(engine=engine))
    carried = list(carried_on(of_run, ()))
    assert len(carried) == 2 and carried[1] is network.weight
