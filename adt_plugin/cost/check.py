"""What `gpu-check` finds out about a device, part by part; each part stands alone and says one sentence."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.report import TurnReport
from adt_plugin.core.run.rehearsal import Headroom
from adt_plugin.core.schedule import TurnSchedule, start_range
from adt_plugin.core.stopwatch import Stopwatch
from adt_plugin.cost import tiny
from adt_plugin.cost.measure import device_name, measure_base, measure_turn, peak_of_turn, prepared
from adt_plugin.cost.workbench import Workbench, Workload

GIB = 2**30
AGREE = 0.02
"""The most that a gradient on the device may differ from the CPU's, and one of kept graphs from a replayed one, relative to its
norm: TF32 and other orders of summation lie within it, a wrong sign or other draws do not."""


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        device: on which.
        workload, config: the user's own run.
        small: a run that fits on every card, for the parts that compare ways of computing.
        steps: optimizer steps of the user's run.
        repeats: of every timed call.
    """

    device: torch.device
    workload: Workload
    config: ADTConfig
    small: Workload
    steps: int
    repeats: int

    @property
    def watch(self) -> Stopwatch:
        """A stopwatch for the device."""
        return Stopwatch(self.device, self.repeats)


@dataclass(frozen=True)
class Finding:
    """What one part found.

    Attributes:
        part: its name.
        good: whether a run could rely on it.
        said: one sentence.
        numbers: behind the sentence.
    """

    part: str
    good: bool
    said: str
    numbers: dict[str, Any] = field(default_factory=dict)


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what every part of `PARTS` finds, as soon as it has; a part that fails is a finding too, and the next one runs."""
    for name, part in PARTS.items():
        try:
            good, said, numbers = part(subject)
            yield Finding(name, good, said, numbers)
        except torch.OutOfMemoryError as error:
            yield Finding(name, False, f"out of memory ({first_line(error)}): docs/cost.md says what needs less.")
        except Exception as error:  # whatever a driver or a kernel raises: the check has to go on and say so
            yield Finding(name, False, f"{type(error).__name__}: {first_line(error)}")
        gc.collect()
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or "no message").splitlines()[0]


Result = tuple[bool, str, dict[str, Any]]


def the_device(subject: Subject) -> Result:
    """Name the device and its memory."""
    device = subject.device
    numbers: dict[str, Any] = {"name": device_name(device), "torch": torch.__version__}
    if device.type != "cuda":
        return True, f"{numbers['name']}: no CUDA device, so that nothing below is said about a card.", numbers
    free, whole = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    numbers |= {"gib": whole / GIB, "free": free / GIB, "capability": f"{major}.{minor}", "cuda": torch.version.cuda}
    said = f"{numbers['name']}, {whole / GIB:.1f} GiB of which {free / GIB:.1f} are free, compute capability {major}.{minor}, "
    return (
        True,
        said + f"PyTorch {torch.__version__}; bf16: {'yes' if major >= 8 else 'no, decoder and backbone run in fp32'}.",
        numbers,
    )


def same_as_cpu(subject: Subject) -> Result:
    """Compare a turn on the device with the same turn on the CPU, on a tiny model."""
    config = ADTConfig(
        **tiny.OPTIONS, steps=4, disc_penalty=0.0, decode_dtype="fp32", decode_crop=0
    )  # the penalty's noise is the device's
    on_cpu = tiny_bench(torch.device("cpu"), config)
    there = tiny_bench(subject.device, config)
    for mine, its in zip(parts_of(there), parts_of(on_cpu), strict=True):
        mine.load_state_dict(its.state_dict())
    there.clean.copy_(on_cpu.clean)
    gradients = [gradient_of_a_turn(bench, config)[0].cpu() for bench in (on_cpu, there)]
    error = relative(gradients[1], gradients[0])
    return error < AGREE, f"a turn on a tiny model gives the CPU's gradient within {error:.1e} of its norm.", {"error": error}


def tiny_bench(device: torch.device, config: ADTConfig) -> Workbench:
    """Build the tiny model's workbench, whose LoRA is no longer zero."""
    bench = Workbench(Workload(tiny.NAME, rank=4, dtype="fp32"), config, device, torch.float32)
    for parameter in bench.trained:
        nn.init.constant_(parameter, 0.01)
    return bench


def parts_of(bench: Workbench) -> list[nn.Module]:
    """Return all modules of a workbench."""
    return [bench.network, bench.decoder, bench.discriminator, bench.discriminator.backbone._network]


def gradient_of_a_turn(bench: Workbench, config: ADTConfig, scale: float = 1.0) -> tuple[Tensor, TurnReport]:
    """Return what the first adversarial turn alone adds to the gradients of what is trained, as one vector.

    Args:
        scale: of the loss, as a loss scaler multiplies it.
    """
    turn = bench.turn(replace(config, warmup=0))
    prediction = bench.forward_with_graph().float()
    turn.watch(prediction, scale)
    (scale * torch.nn.functional.mse_loss(prediction, bench.clean)).backward()
    bench.optimizer.zero_grad(set_to_none=True)
    report = turn(bench.denoiser, bench.clean, backward=lambda loss: (scale * loss).backward())
    gradient = torch.cat([parameter.grad.flatten().float() for parameter in bench.trained if parameter.grad is not None])
    bench.optimizer.zero_grad(set_to_none=True)
    return gradient / scale, report


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the distance over the expected norm."""
    return float((found - expected).norm() / expected.norm())


def precisions(subject: Subject) -> Result:
    """Make a turn with the denoiser in each precision."""
    norms = {}
    for dtype in ("fp32", "bf16", "fp16"):
        norms[dtype] = norm_in(subject, dtype)
        gc.collect()  # a workbench refers to itself, and two do not fit on a small card
    good = [dtype for dtype, norm in norms.items() if norm > 0 and math.isfinite(norm)]
    bad = [dtype for dtype in norms if dtype not in good]
    said = f"turns in {', '.join(good) or 'no precision'} give a finite gradient" + (
        f"; not in {', '.join(bad)}." if bad else "."
    )
    return not bad, said, norms


def norm_in(subject: Subject, dtype: str) -> float:
    """Return the norm of a turn's gradient with the denoiser in this precision; 0 where the turn was skipped."""
    bench = prepared(replace(subject.small, dtype=dtype), subject.config, subject.device)
    gradient, report = gradient_of_a_turn(bench, subject.config, scale=1024.0 if dtype == "fp16" else 1.0)
    return 0.0 if report.skipped else float(gradient.norm())


def offload(subject: Subject) -> Result:
    """Make a turn with decoder and backbone away, and see that they come home."""
    config = replace(subject.config, offload=True)
    bench = prepared(subject.small, config, subject.device)
    here = measure_turn(bench, subject.watch, replace(config, offload=False), last_start(config))
    away = measure_turn(bench, subject.watch, config, last_start(config))
    left = [tensor for tensor in bench.visual_tensors() if tensor.device.type != "cpu"]
    saved = (here.peak - away.peak) / GIB
    numbers = {"peak": here.peak, "peak_offloaded": away.peak, "seconds": here.seconds, "seconds_offloaded": away.seconds}
    if left:
        return False, f"{len(left)} of {len(bench.visual_tensors())} weights did not come home.", numbers
    return True, f"all weights come home; {saved:.2f} GiB less, {away.seconds - here.seconds:+.2f} s a turn.", numbers


def kept_graphs(subject: Subject) -> Result:
    """Compare the gradient of kept graphs with that of replayed steps, and what both cost."""
    bench = prepared(subject.small, subject.config, subject.device)
    for parameter in bench.trained:
        nn.init.constant_(parameter, 0.01)
    low, fast = (replace(subject.config, memory=memory, offload=False, disc_penalty=0.0) for memory in ("low", "fast"))
    state = {name: tensor.clone() for name, tensor in bench.discriminator.state_dict().items()}
    gradients, costs = [], []
    for config in (low, fast):
        bench.discriminator.load_state_dict(state)
        bench.place(config)
        gradients.append(gradient_of_a_turn(bench, config)[0])
        costs.append(measure_turn(bench, subject.watch, config, last_start(config)))
    error = relative(gradients[1], gradients[0])
    more, less = (costs[1].peak - costs[0].peak) / GIB, costs[0].seconds - costs[1].seconds
    said = f"the gradient is the replayed one's within {error:.1e}; {more:+.2f} GiB, {-less:+.2f} s a turn."
    return error < AGREE, said, {"error": error, "gib": more, "seconds": -less}


def your_run(subject: Subject) -> Result:
    """Measure a plain step and a turn of the user's own run."""
    config, start = subject.config, (sum(start_range(subject.config)) + 1) // 2
    bench = prepared(subject.workload, config, subject.device)
    base = measure_base(bench, subject.watch)
    turn = measure_turn(bench, subject.watch, config, start)
    turns = TurnSchedule.from_config(config, subject.steps).count(subject.steps)
    ratio = 1 + (turns.warmup + turns.adversarial) * turn.seconds / (subject.steps * base.seconds)
    numbers = {"step": base.seconds, "turn": turn.seconds, "step_peak": base.peak, "turn_peak": turn.peak, "ratio": ratio}
    said = f"{subject.workload}: a plain step takes {base.seconds:.3g} s and {base.peak / GIB:.2f} GiB, "
    said += f"a turn {turn.seconds:.3g} s more, a step with one {turn.peak / GIB:.2f} GiB; "
    said += f"{subject.steps} steps take {ratio:.1f} times as long as without --adt."
    return True, said, numbers


def step_down(subject: Subject) -> Result:
    """Give the device too little memory for a turn on whole images, and see a run with `--adt_memory auto` go on with less."""
    if subject.device.type != "cuda":
        return True, "not tried: a CPU's memory does not run out with an error.", {}
    config = replace(subject.config, memory="auto", decode_crop=0, offload=False, warmup=0)
    bench = prepared(replace(subject.small, resolution=512), config, subject.device)
    whole, half = (peak_of_turn(bench, bench.turn(replace(config, decode_crop=crop))) for crop in (0, 256))
    allowed = int(1.05 * half) + 64 * 2**20  # the allocator takes memory in blocks
    numbers = {"whole": whole, "half": half, "allowed": allowed}
    if allowed >= whole:
        return True, "not tried: whole images and windows take nearly the same memory here.", numbers
    with memory_limit(subject.device, allowed):
        window = window_that_fits(bench, config)
    said = f"with {allowed / GIB:.2f} GiB a turn on whole images stepped down to --adt_decode_crop {window} and was made."
    return 0 < window <= 256, said if window else f"a turn that takes {whole / GIB:.2f} GiB was made in less.", numbers


@contextmanager
def memory_limit(device: torch.device, allowed: int) -> Iterator[None]:
    """Let this process have no more than so many bytes of a CUDA device inside."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info(device)[1], device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def window_that_fits(bench: Workbench, config: ADTConfig) -> int:
    """Make a turn as a run does that steps down where memory runs out; returns the window it ended with, 0 for whole images."""
    turn = bench.turn(config)
    prediction = bench.forward_with_graph().float()
    turn.watch(prediction)
    torch.nn.functional.mse_loss(prediction, bench.clean).backward()
    del prediction
    headroom = Headroom(turn)
    headroom.rehearse(0, bench.trained, bench.denoiser, bench.clean)
    headroom.make_turn(bench.denoiser, bench.clean)
    bench.optimizer.zero_grad(set_to_none=True)
    return turn.config.decode_crop


def last_start(config: ADTConfig) -> int:
    """Return the start of the longest path."""
    return start_range(config)[1]


PARTS: dict[str, Callable[[Subject], Result]] = {
    "device": the_device,
    "same as the CPU": same_as_cpu,
    "your run": your_run,
    "precisions": precisions,
    "offload": offload,
    "kept graphs": kept_graphs,
    "stepping down": step_down,
}
"""In the order in which they are run: what is worth most comes first."""


def verdict(found: list[Finding]) -> str:
    """Return the last line: ready, or what is not."""
    bad = [finding.part for finding in found if not finding.good]
    if bad:
        return f"not ready: {', '.join(bad)}"
    return f"ready: {found[0].numbers['name']}" + ("" if "gib" in found[0].numbers else ", which is no card")
