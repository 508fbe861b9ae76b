"""A session on a make-believe host: the order of its calls, and what happens when one of them never comes."""

from __future__ import annotations

import errno
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from PIL import ImageDraw
from safetensors import SafetensorError
from torch import Tensor

from adt_plugin.core.schedule import TurnCount
from adt_plugin.core.turn import AdversarialTurn
from adt_plugin.host import forecast, resume
from adt_plugin.host.batch import Noised
from adt_plugin.host.findings import Findings
from adt_plugin.host.guidance import STRATEGIES
from adt_plugin.host.order import HostFirst, Together
from adt_plugin.host.seams import patch_attribute, rebind
from adt_plugin.host.trained import PRESERVED
from toyhost import Host, UNet2DConditionModel


@pytest.mark.parametrize(("turns", "batch", "said"), [(120, 1, True), (120, 4, False), (479, 1, True), (0, 4, False)])
def test_a_run_whose_turns_see_few_images_is_told_so(turns: int, batch: int, said: bool) -> None:
    sentence = forecast.of_images(TurnCount(40, turns), batch)
    assert bool(sentence) == said and (not said or f"see {turns * batch} images in all" in sentence)


@pytest.fixture
def host(tmp_path: Path, tiny_dino: Path) -> Host:
    return Host(tmp_path, tiny_dino)


@pytest.fixture(autouse=True)
def progress_bars_and_loaders_as_they_were() -> Iterator[None]:
    import tqdm

    original, walk = tqdm.std.tqdm.set_postfix, DataLoaderShard.__iter__
    yield
    tqdm.std.tqdm.set_postfix, DataLoaderShard.__iter__ = original, walk


def test_a_batch_in_the_hosts_order_adds_a_gradient(host: Host) -> None:
    host.load()
    host.prepare()
    host.noise()
    loss = host.forward()
    expected = torch.autograd.grad(loss, host.unet.layer.weight, retain_graph=True)[0]
    host.accelerator.backward(loss)
    assert host.session.run.turn.turns == 1
    assert not torch.equal(host.gradient(), expected)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("load", "load_target_model (the VAE)"),
        ("prepare", "Accelerator.prepare (the denoiser, one of UNet2DConditionModel)"),
        ("noise", "get_noise_noisy_latents_and_timesteps (the clean latents and the noise schedule of each batch)"),
        ("forward", "the denoiser's forward call"),
    ],
)
def test_a_stage_that_was_never_reached_ends_the_run_with_its_name(host: Host, missing: str, named: str) -> None:
    for stage in ("load", "prepare", "noise"):
        if stage != missing:
            getattr(host, stage)()
    if missing == "prepare":
        host.unet = UNet2DConditionModel()  # prepared in a way that the plugin does not see
    loss = torch.zeros((), requires_grad=True).exp() if missing == "forward" else host.forward()
    with pytest.raises(SystemExit, match="never reached before the first backward pass") as ended:
        host.accelerator.backward(loss)
    assert named in str(ended.value)


def test_a_host_that_embeds_prompts_its_own_way_is_trained_without_guidance(
    tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless guidance was asked for: then the run ends."""
    monkeypatch.setitem(sys.modules, STRATEGIES, ModuleType(STRATEGIES))  # and nobody encodes the empty prompt
    for asked in (False, True):
        host = Host(tmp_path / str(asked), tiny_dino, **({"cfg_scale": "3"} if asked else {}))
        assert host.session.config.guidance_scales == (3.0, 3.0)
        for stage in (host.load, host.prepare, host.noise):
            stage()
        loss = host.forward()
        if asked:
            with pytest.raises(SystemExit, match="leave --adt_cfg_scale out"):
                host.accelerator.backward(loss)
            return
        host.accelerator.backward(loss)
        assert host.session.config.guidance_scales == (1.0, 1.0)
        saved = host.session._around_metadata(dict)()
        assert saved["ss_adt_cfg_scale"] == "1"


def test_the_first_batch_is_rehearsed_long_before_its_turn(tmp_path: Path, tiny_dino: Path) -> None:
    """And what the host's own backward has left is left as it was."""
    host = Host(tmp_path, tiny_dino, begin=0.9)
    for stage in (host.load, host.prepare, host.noise):
        stage()
    loss = host.forward()
    expected = torch.autograd.grad(loss, host.unet.layer.weight, retain_graph=True)[0]
    headroom, backwards = host.session.run.headroom, []
    headroom.limited = lambda device: True
    host.unet.layer.weight.register_hook(backwards.append)
    host.accelerator.backward(loss)
    assert headroom.rehearsed == {(False, False): 4 * 8 * 8} and host.session.run.turn.turns == 0
    assert len(backwards) == 1 + 2 and torch.equal(host.gradient(), expected)


def buckets(*found: tuple[tuple[int, int], int], batch: int = 2) -> SimpleNamespace:
    """A group of one data set with ((width, height), images) in its buckets, as the host holds it."""
    sizes, counts = zip(*found, strict=True)
    manager = SimpleNamespace(resos=list(sizes), buckets=[["image"] * count for count in counts])
    return SimpleNamespace(datasets=[SimpleNamespace(bucket_manager=manager, batch_size=batch)])


LATER = buckets(((64, 64), 3), ((128, 64), 5), ((512, 512), 0))
"""The batch of a toy host has one image of 64 pixels; larger ones and more of them come later, of the largest size none."""


def at_the_first_backward(host: Host, dataset: object) -> tuple[list[tuple[int, ...]], Tensor, Tensor]:
    """Sizes of the latents that were rehearsed there, the gradient, and that of the host's own loss."""
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.session.found.bring("dataset", dataset)
    loss = host.forward()
    (expected,) = torch.autograd.grad(loss, host.unet.layer.weight, retain_graph=True)
    run, sizes = host.session.run, []
    rehearse, run.headroom.limited = run.headroom.rehearse, lambda device: True

    def noted(step: int, parameters: object, denoiser: object, latents: Tensor, **keywords: object) -> None:
        rehearse(step, parameters, denoiser, latents, **keywords)  # type: ignore[arg-type]
        sizes.append(tuple(latents.shape))

    run.headroom.rehearse = noted  # type: ignore[method-assign]
    host.accelerator.backward(loss)
    return sizes, host.gradient(), expected


@pytest.mark.parametrize("memory", ["low", "joined"])
def test_the_largest_bucket_is_rehearsed_before_the_first_step(tmp_path: Path, tiny_dino: Path, memory: str) -> None:
    host = Host(tmp_path, tiny_dino, begin=0.9, memory=memory)
    sizes, found, expected = at_the_first_backward(host, LATER)
    assert sizes == [(2, 4, 8, 16)] and torch.equal(found, expected) and host.session.run.turn.turns == 0
    for _ in range(2):  # once more when the optimizer has its moments, and then no more
        host.noise()
        host.accelerator.backward(host.forward())
    assert sizes == [(2, 4, 8, 16)] * 2


@pytest.mark.parametrize(
    "dataset",
    [None, SimpleNamespace(), SimpleNamespace(datasets=[SimpleNamespace()]), buckets(((96, 64), 4)), buckets(((64, 64), 1))],
    ids=["none", "of another kind", "without buckets", "not of this batch", "no larger one"],
)
def test_without_larger_buckets_the_batch_itself_is_rehearsed(tmp_path: Path, tiny_dino: Path, dataset: object) -> None:
    sizes, found, expected = at_the_first_backward(Host(tmp_path, tiny_dino, begin=0.9), dataset)
    assert sizes == [(1, 4, 8, 8)] and torch.equal(found, expected)


def test_a_denoiser_that_takes_no_other_size_is_rehearsed_on_the_batch(
    tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = UNet2DConditionModel.forward

    def only_square(self: UNet2DConditionModel, x: Tensor, *rest: Tensor) -> object:
        if x.shape[-1] != 8:
            raise ValueError("no such place")
        return forward(self, x, *rest)

    monkeypatch.setattr(UNet2DConditionModel, "forward", only_square)
    host = Host(tmp_path, tiny_dino, begin=0.9)
    sizes, found, expected = at_the_first_backward(host, LATER)
    assert sizes == [(1, 4, 8, 8)] and torch.equal(found, expected)
    assert not host.session.run.largest.possible


def test_a_joined_turn_is_rehearsed_and_no_hook_of_a_parameter_fires(tmp_path: Path, tiny_dino: Path) -> None:
    """In such a hook sd-scripts' fused optimizers step."""
    host, fired = Host(tmp_path, tiny_dino, begin=0.9, memory="joined"), []
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.unet.layer.weight.register_post_accumulate_grad_hook(lambda parameter: fired.append(1))
    loss = host.forward()
    headroom = host.session.run.headroom
    headroom.limited = lambda device: True
    host.accelerator.backward(loss)
    assert headroom.rehearsed == {(False, False): 4 * 8 * 8} and fired == [1]


def test_a_validation_batch_starts_no_turn(host: Host) -> None:
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.accelerator.backward(host.forward())
    host.noise()
    with torch.no_grad():
        host.forward()
    assert isinstance(host.session.batch, Noised) and host.session.run.turn.turns == 1
    host.noise()
    host.accelerator.backward(host.forward())
    assert host.session.run.turn.turns == 2


def test_a_backward_without_a_batch_is_the_hosts_own_affair(host: Host) -> None:
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.accelerator.backward(host.forward())
    host.unet.zero_grad()
    host.accelerator.backward(host.unet.layer.weight.sum())
    assert torch.equal(host.gradient(), torch.ones_like(host.gradient()))
    assert host.session.run.turn.turns == 1


def test_a_denoiser_with_other_channels_ends_the_run(host: Host) -> None:
    for stage in (host.load, host.prepare):
        stage()
    host.session.on_noising(host.schedule, torch.randn(1, 9, 8, 8))
    with pytest.raises(SystemExit, match=r"called with \(1, 4, 8, 8\), expected the latents' \(1, 9, 8, 8\)"):
        host.forward()


@pytest.mark.parametrize("kind", ["MULTI_CPU", "MULTI_GPU"])
@pytest.mark.parametrize(
    ("memory", "order"), [("low", HostFirst), ("auto", HostFirst), ("fast", Together), ("joined", Together)]
)
def test_several_processes_keep_graphs_for_one_pass_alone(
    tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch, kind: str, memory: str, order: type
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType[kind])
    host = Host(tmp_path, tiny_dino, memory=memory)
    assert type(host.session.order) is order
    host.session.uninstall()


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "MULTI_XPU"])
def test_what_accelerates_own_configuration_chooses_is_refused_by_name(
    tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType[kind])
    way_out = "use sd-scripts' --deepspeed, turn it off" if kind == "DEEPSPEED" else "turn it off"
    with pytest.raises(SystemExit, match=f"--adt does not work under {kind}: {way_out} in accelerate's configuration"):
        Host(tmp_path, tiny_dino)


def test_a_compiled_denoiser_in_several_processes_is_refused(
    tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    plugin = TorchDynamoPlugin(backend=DynamoBackend.EAGER)
    monkeypatch.setitem(Accelerator(cpu=True).state._shared_state, "dynamo_plugin", plugin)
    with pytest.raises(SystemExit, match="--torch_compile hides the wrapper"):
        Host(tmp_path, tiny_dino)


def one_batch(host: Host, factor: float = 1.0) -> Tensor:
    """The host's loss times a factor, backward and turn, from the same draws; the gradient, unscaled."""
    torch.manual_seed(7)
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.optimizer = host.accelerator.prepare(torch.optim.SGD(host.unet.parameters(), lr=0.1))
    host.accelerator.backward(factor * host.forward())
    return host.gradient() / (host.accelerator.scaler.get_scale() if host.accelerator.scaler else 1.0)


def heads(host: Host) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in host.session.models.discriminator.score.heads.parameters()]


EITHER_WAY = pytest.mark.parametrize("memory", ["low", "joined"])


@pytest.fixture(autouse=True)
def checkpointing_as_it_was() -> Iterator[None]:
    original = torch.utils.checkpoint.checkpoint
    yield
    if torch.utils.checkpoint.checkpoint is not original:
        rebind(torch.utils.checkpoint.checkpoint, original)


@EITHER_WAY
def test_a_loss_scaler_changes_neither_the_balance_nor_the_sum(tmp_path: Path, tiny_dino: Path, memory: str) -> None:
    """Accelerate has one for fp16 on a GPU; here a CPU's is put in its place."""
    plain, scaled = Host(tmp_path, tiny_dino, balance="ratio"), Host(tmp_path, tiny_dino, balance="ratio", memory=memory)
    scaled.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.testing.assert_close(one_batch(scaled), one_batch(plain))
    norms = [host.session.run.turn.balance.diffusion.value for host in (scaled, plain)]
    torch.testing.assert_close(*norms)
    assert norms[0] > 0


def test_nothing_asks_the_scaler_for_its_number(tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's scaler keeps it on the device: a number in every micro-batch would wait for it."""
    host = Host(tmp_path, tiny_dino)
    host.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    asked = []
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda self: asked.append(self) or 1024.0)
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.accelerator.backward(host.forward())
    assert host.session.run.turn.turns == 1 and not asked
    assert isinstance(host.session.run.loss_scale, Tensor) and host.session.run.loss_scale == 1024.0


@EITHER_WAY
def test_accumulation_divides_the_sum_and_changes_not_the_balance(
    tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    plain = Host(tmp_path, tiny_dino, balance="ratio")
    whole = one_batch(plain)
    accumulating = Host(tmp_path, tiny_dino, balance="ratio", memory=memory)
    monkeypatch.setattr(Accelerator, "gradient_accumulation_steps", property(lambda self: 4))
    torch.testing.assert_close(one_batch(accumulating), whole / 4)
    norms = [host.session.run.turn.balance.diffusion.value for host in (accumulating, plain)]
    torch.testing.assert_close(*norms)
    assert norms[0] > 0


@EITHER_WAY
@pytest.mark.parametrize(("factor", "moved"), [(1.0, True), (float("inf"), False)])
def test_the_heads_step_when_the_scaler_lets_the_host_step(
    tmp_path: Path, tiny_dino: Path, factor: float, moved: bool, memory: str
) -> None:
    host = Host(tmp_path, tiny_dino, memory=memory)
    host.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = heads(host)
    one_batch(host, factor)
    assert host.session.run.turn.turns == 1
    assert moved != all(torch.equal(a, b) for a, b in zip(before, heads(host), strict=True))
    weight = host.unet.layer.weight.clone()
    host.optimizer.step()
    assert moved != torch.equal(weight, host.unet.layer.weight)
    assert host.accelerator.scaler.get_scale() == (4.0 if moved else 2.0)


def test_a_state_saved_in_the_middle_of_a_turn_holds_the_hosts_own_rate(tmp_path: Path, tiny_dino: Path) -> None:
    """The rate of the adversarial part is in the optimizer then; a resumed run would take it for its own."""
    host = Host(tmp_path, tiny_dino, max_bad_turns=1)
    for stage in (host.load, host.prepare):
        stage()
    optimizer = torch.optim.SGD(host.unet.parameters(), lr=0.25)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    host.accelerator.prepare(optimizer)
    host.noise()
    loss, found = host.forward(), []
    run = host.session.run
    run.turn.decode = lambda latents: found.append(optimizer.param_groups[0]["lr"]) or latents[:, :3] * float("nan")
    with pytest.raises(SystemExit, match="Everything is saved in"):
        host.accelerator.backward(loss)
    (saved,) = tmp_path.glob("*/optimizer.bin")
    assert set(found) == {0.025} and torch.load(saved)["param_groups"][0]["lr"] == 0.25


def test_a_joined_turn_is_one_pass_of_the_host(tmp_path: Path, tiny_dino: Path) -> None:
    """Also in a batch without a turn, whose gradient the balance learns of all the same."""
    host, passes = Host(tmp_path, tiny_dino, memory="joined", every=2), []
    for stage in (host.load, host.prepare):
        stage()
    host.unet.layer.weight.register_post_accumulate_grad_hook(lambda weight: passes.append(1))
    norms = []
    for _ in range(4):
        host.noise()
        host.accelerator.backward(host.forward())
        norms.append(host.session.run.turn.balance.diffusion.value.clone())
    assert len(passes) == 4 and host.session.run.turn.turns == 2
    assert len({float(norm) for norm in norms}) == 4


def test_reentrant_checkpointing_is_made_non_reentrant_for_one_pass_and_given_back(tmp_path: Path, tiny_dino: Path) -> None:
    original = torch.utils.checkpoint.checkpoint
    host, fired = Host(tmp_path, tiny_dino, memory="joined"), []
    weight = torch.ones(3, requires_grad=True)
    weight.register_post_accumulate_grad_hook(lambda weight: fired.append(weight.grad.clone()))
    x = torch.ones(3, requires_grad=True)
    calls = [torch.utils.checkpoint.checkpoint(lambda x: x * weight, x, use_reentrant=True) for _ in range(3)]
    sum(calls).sum().backward()
    assert len(fired) == 1 and torch.equal(fired[0], 3 * torch.ones(3))
    host.session.uninstall()
    assert torch.utils.checkpoint.checkpoint is original


def test_turns_cannot_train_a_text_encoder_that_the_run_does_not_train(tmp_path: Path, tiny_dino: Path) -> None:
    host = Host(tmp_path, tiny_dino, memory="joined", train_text_encoder=True)
    for stage in (host.load, host.prepare, host.noise):
        stage()
    with pytest.raises(SystemExit, match="--adt_train_text_encoder needs a run that trains its text encoder"):
        host.accelerator.backward(host.forward())


@pytest.mark.parametrize("trained", [True, False])
def test_a_text_encoder_learns_from_turns_only_if_that_is_asked_for(tmp_path: Path, tiny_dino: Path, trained: bool) -> None:
    host = Host(tmp_path, tiny_dino, memory="joined", train_text_encoder=trained)
    for stage in (host.load, host.prepare, host.noise):
        stage()
    encoder = torch.zeros((), requires_grad=True)
    output = host.unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.tanh(encoder)).sample
    loss = output.square().mean()
    (alone,) = torch.autograd.grad(loss, [encoder], retain_graph=True)
    host.accelerator.backward(loss)
    assert torch.equal(encoder.grad, alone) is not trained


def test_models_without_an_accelerator_end_the_run(host: Host) -> None:
    host.session.found = Findings()
    with pytest.raises(SystemExit, match="the seam prepare_accelerator was not reached"):
        host.load()


def test_a_backward_that_goes_past_the_accelerator_ends_the_run_at_the_next_batch(host: Host) -> None:
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.forward().backward()
    with pytest.raises(SystemExit, match="the seam Accelerator.backward was not reached"):
        host.noise()


def test_a_warmup_that_outlasts_the_counted_steps_ends_the_run(tmp_path: Path, tiny_dino: Path) -> None:
    """With --max_train_epochs the host writes the true number of steps only after it has read the data."""
    host = Host(tmp_path, tiny_dino, warmup=50)
    host.args.max_train_steps = 30
    for stage in (host.load, host.prepare, host.noise):
        stage()
    with pytest.raises(SystemExit, match="--adt_warmup 50 and --adt_every 1 leave no turn of this run"):
        host.accelerator.backward(host.forward())


@pytest.mark.parametrize("offload", [False, True])
def test_decoder_and_backbone_are_what_is_offloaded(tmp_path: Path, tiny_dino: Path, offload: bool) -> None:
    host = Host(tmp_path, tiny_dino, offload=offload)
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.accelerator.backward(host.forward())
    turn, session = host.session.run.turn, host.session
    assert turn.turns == 1
    assert turn.offload.modules == ([session.found["decoder"], session.models.discriminator.backbone] if offload else [])


class Tracker:
    """A tracker that keeps what it was given."""

    def __init__(self, name: str) -> None:
        self.name, self.rows, self.images = name, [], []

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.rows.append(dict(values))

    def log_images(self, values: dict[str, object], step: int | None, **keywords: object) -> None:
        self.images.append((*values, step, keywords))


def test_every_tracker_gets_each_turns_numbers_once_and_its_picture(tmp_path: Path, tiny_dino: Path) -> None:
    host = Host(tmp_path, tiny_dino, pictures_every=1)
    trackers = [Tracker("tensorboard"), Tracker("wandb")]
    host.accelerator.init_trackers = lambda *args: setattr(host.accelerator, "trackers", trackers)
    patch_attribute(host.accelerator, "init_trackers", host.session.found["feedback"]._around_init_trackers)
    host.accelerator.init_trackers("x")
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.accelerator.backward(host.forward())
    for values in ({"loss/current": 1.0}, {"loss/current": 2.0}, {"loss/epoch_average": 3.0}):
        for tracker in trackers:
            tracker.log(values, step=1)
    for tracker in trackers:
        assert [("adt/loss_d" in row) for row in tracker.rows] == [True, False, False]
    sent = ["adt/progress", "adt/pairs", "adt/progress"]  # before the first turn, and after it
    assert trackers[0].images == [(name, 0, {"dataformats": "NHWC"}) for name in sent]
    assert trackers[1].images == [(name, None, {"commit": False}) for name in sent]


def test_a_second_run_in_the_process_finds_the_host_as_it_was(host: Host) -> None:
    import tqdm

    assert "set_postfix" in vars(tqdm.std.tqdm) and hasattr(tqdm.std.tqdm.set_postfix, "_adt_undo")
    host.session.uninstall()
    assert not hasattr(tqdm.std.tqdm.set_postfix, "_adt_undo")


@pytest.mark.parametrize("refused", [True, False])
def test_no_metadata_is_heeded(host: Host, refused: bool) -> None:
    host.args.no_metadata = refused
    saved = host.session._around_metadata(lambda: {"modelspec.title": "x"})()
    assert saved["modelspec.title"] == "x"
    assert any(key.startswith("ss_adt_") for key in saved) is not refused


FULL = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "torch": RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
}


@pytest.mark.parametrize("fault", FULL.values(), ids=FULL)
def test_a_state_that_the_disk_refuses_names_the_last_whole_one(tmp_path: Path, fault: Exception) -> None:
    accelerator = FullDisk(fault)
    undo = resume.on_full_disk(accelerator, [])
    with pytest.raises(SystemExit, match=r"could not be saved \(.*\): make room and delete it; there is no earlier one\.$"):
        accelerator.full = True
        accelerator.save_state(str(tmp_path / "step1"))
    accelerator.full = False
    for name in ("step1", "step2", "step3"):
        assert accelerator.save_state(str(tmp_path / name)) == str(tmp_path / name)
    (tmp_path / "step3").rmdir()  # as --save_last_n_steps_state does
    accelerator.full = True
    with pytest.raises(SystemExit) as ended:
        accelerator.save_state(str(tmp_path / "step4"))
    assert f"the last whole one is {tmp_path / 'step2'}, --resume goes on from there" in str(ended.value)
    assert "\n" not in str(ended.value)
    undo()
    with pytest.raises(type(fault)):
        accelerator.save_state(str(tmp_path / "step4"))


def test_another_error_at_a_states_saving_is_left_alone(tmp_path: Path) -> None:
    accelerator = FullDisk(RuntimeError("a fault of the host"))
    accelerator.full = True
    resume.on_full_disk(accelerator, [])
    with pytest.raises(RuntimeError, match="a fault of the host"):
        accelerator.save_state(str(tmp_path))


class FullDisk:
    """An accelerator whose disk is full or not."""

    def __init__(self, fault: Exception) -> None:
        self.fault, self.full = fault, False

    def save_state(self, output_dir: str) -> str:
        if self.full:
            raise self.fault
        Path(output_dir).mkdir()
        return output_dir


# What of a batch the host trains


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keywords of every turn."""
    seen: list[dict[str, Any]] = []
    turn = AdversarialTurn.__call__
    monkeypatch.setattr(AdversarialTurn, "__call__", lambda *args, **named: seen.append(named) or turn(*args, **named))
    return seen


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"alpha_masks": torch.full((1, 64, 64), 0.25)}, 0.25),
        ({"conditioning_images": torch.full((1, 3, 64, 64), -0.5), "alpha_masks": torch.ones(1, 64, 64)}, 0.25),
        ({"alpha_masks": None}, None),
    ],
)
def test_a_turn_has_the_mask_that_the_hosts_loss_is_multiplied_by(
    host: Host, given: list[dict[str, Any]], data: dict[str, Any], expected: float | None
) -> None:
    for stage in (host.load, host.prepare, host.noise):
        stage()
    loss = host.session._around_masking(lambda loss, batch: 2 * loss)(host.forward(), data)
    host.accelerator.backward(loss)
    mask = given[0]["mask"]
    assert mask is None if expected is None else (mask.shape == (1, 1, 64, 64) and bool((mask == expected).all()))
    host.noise()
    host.accelerator.backward(host.forward())
    assert given[1]["mask"] is None  # of the next batch, which has none


class Images(torch.utils.data.Dataset[dict[str, Any]]):
    """Whole batches, as the host's data sets give them: the first image of each is one of regularisation."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"loss_weights": torch.tensor([0.5 + index]), "custom_attributes": [{PRESERVED: index == 2}]}


def test_a_turn_has_the_weights_of_its_own_batch(tmp_path: Path, tiny_dino: Path, given: list[dict[str, Any]]) -> None:
    """Also after an epoch that begins in its middle, for which accelerate makes another loader."""
    host = Host(tmp_path, tiny_dino, prior_loss_weight=0.5)
    host.load()
    host.prepare()
    loader = host.accelerator.prepare(torch.utils.data.DataLoader(Images(), batch_size=1, collate_fn=lambda items: items[0]))
    for data in itertools.chain(loader, host.accelerator.skip_first_batches(loader, 2)):
        assert data["loss_weights"].shape == (1,)
        host.noise()
        host.accelerator.backward(host.forward())
    assert [float(named["weights"]) for named in given] == [0.5, 1.5, 0.0, 0.0]
    host.session.uninstall()
    host.session.found = Findings()
    assert len(list(loader)) == 3 and "data" not in host.session.found


def test_without_weights_the_data_are_left_alone(host: Host, given: list[dict[str, Any]]) -> None:
    host.load()
    host.prepare()
    loader = host.accelerator.prepare(torch.utils.data.DataLoader(Images(), batch_size=1, collate_fn=lambda items: items[0]))
    for _ in loader:
        host.noise()
        host.accelerator.backward(host.forward())
    assert [named["weights"] for named in given] == [None] * 3 and "data" not in host.session.found


def test_the_caption_of_the_followed_image_is_on_its_panels(
    tmp_path: Path, tiny_dino: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the batch of the first turn, however many come after it."""
    texts: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, place, text, **how: texts.append(text))
    host = Host(tmp_path, tiny_dino, pictures_every=1)
    host.load()
    host.prepare()
    batches = [{"captions": [f"{animal} sitting on a long wooden garden bench", "x"]} for animal in ("a cat", "a dog")]
    loader = host.accelerator.prepare(torch.utils.data.DataLoader(batches, batch_size=1, collate_fn=lambda items: items[0]))
    for _ in loader:
        host.noise()
        host.accelerator.backward(host.forward())
    panels = [texts[place - 1 : place + 3] for place, text in enumerate(texts) if text.startswith("score")]
    shown = "a cat sitting on a long wooden garden..."
    assert [(lines[0], *lines[2:]) for lines in panels] == [
        (f"turn {turn}  step {step}", "4 steps unrolled", shown) for turn, step in ((0, 0), (1, 0), (2, 1))
    ]
    assert not any("dog" in text for text in texts)


def test_a_batch_without_captions_has_panels_without(host: Host) -> None:
    host.session.on_batch({"captions": None})
    host.session.on_batch({})
    assert host.session.caption == ""


def test_a_run_is_watched_with_a_patience_of_its_own_length(host: Host) -> None:
    for stage in (host.load, host.prepare, host.noise):
        stage()
    host.accelerator.backward(host.forward())
    assert host.session.run.health.patience == 25  # of 100 turns


def test_the_followed_image_holds_no_graph_of_its_batch(tmp_path: Path, tiny_dino: Path) -> None:
    host = Host(tmp_path, tiny_dino, memory="joined", train_text_encoder=True)
    for stage in (host.load, host.prepare, host.noise):
        stage()
    encoder = torch.zeros((), requires_grad=True)
    host.accelerator.backward(host.unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.tanh(encoder)).sample.square().mean())
    followed = host.session.run.progress.followed
    assert followed.prediction is None and not followed.call.has_graph
