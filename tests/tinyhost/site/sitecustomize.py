"""With this folder on PYTHONPATH, the host's *unmodified* command trains a tiny model.

Python imports `sitecustomize` by itself when it starts, so `python train_network.py ...` and `accelerate launch
train_network.py ...` need no wrapper script: nothing stands between the test and the real entry point.

These things happen, each right after the module concerned has been executed, and nothing before that:

* `torchvision.extension`: where torchvision's C extension does not load (a CPU build of torch has no matching build of
  torchvision on PyPI), the two operators that the package registers at import are declared. They never run.
* `accelerate.accelerator`: if `TINYHOST_FP16` holds a number, `--mixed_precision fp16`, which accelerate ignores or refuses
  on a CPU, is what it is on a GPU: half-precision autocast, and a loss scaler that starts from that number.
* `deepspeed.*`: the collective operations of its own, which it compiles for minutes when it first starts on a CPU, are left
  out, and gloo takes their place; with `TINYHOST_FP16`, fp16, which it refuses on most CPUs, starts from that scale.
* `library.*`: if `TINYHOST_FAMILY` names a family, the host's size constants are shrunk by that family's `AFTER_IMPORT`.
  A name such as `true.flux` is a module of the kit whose `AFTER_IMPORT` shrinks the text encoders alone.

If `TINYHOST_PEAK` names a file, the process writes into it, as it ends, the most memory that PyTorch held on a card. With
`TINYHOST_HOOK` the plugin's start-up hook is started from here: where the plugin is not installed but lies on PYTHONPATH.

Only the standard library is imported here, and torch only once torchvision has imported it anyway.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]

KIT = Path(__file__).resolve().parents[1]
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class AfterImport:
    """A meta-path finder that runs an action right after a named module has been executed.

    It takes the spec from the finders behind it and wraps `exec_module` of that spec's loader. Another finder that does
    the same (the plugin's) may stand before or behind it, and may ask every other finder: a search that is already under
    way is not entered again.
    """

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self.actions = dict(actions)
        self._searching: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.actions or name in self._searching:
            return None
        self._searching.add(name)
        try:
            spec = self._find_behind(name, path, target)
        finally:
            self._searching.discard(name)
        if spec is not None:
            run_after(spec, self.actions[name])
        return spec

    def _find_behind(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        finders = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def run_after(spec: ModuleSpec, action: Action) -> None:
    """Make `spec`'s loader call `action(module)` once the module's own code has run."""
    execute = spec.loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        action(module)

    spec.loader.exec_module = exec_module


def declare_operators(extension: ModuleType) -> None:
    """Declare torchvision's operators if its C extension is missing; do nothing where it works."""
    if extension._has_ops():
        return
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    # Kept on the module: the operators disappear with the Library object.
    extension._tinyhost_library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        extension._tinyhost_library.define(operator)


def scale_losses_on_a_cpu(accelerator: ModuleType) -> None:
    """Give every accelerator of fp16 a CPU's loss scaler, whose scale falls fast."""
    import torch

    made = accelerator.Accelerator.__init__

    def with_scaler(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if self.mixed_precision == "fp16" and self.scaler is None:
            self.native_amp = True
            self.scaler = torch.amp.GradScaler("cpu", init_scale=float(os.environ["TINYHOST_FP16"]), backoff_factor=2.0**-10)

    accelerator.Accelerator.__init__ = with_scaler


def leave_operations_uncompiled(backend: ModuleType) -> None:
    """Let DeepSpeed use torch's collective operations alone."""
    backend.build_shm_op = lambda: None


def serve_fp16_on_a_cpu(accelerator: ModuleType) -> None:
    """Let DeepSpeed take a CPU for a device of fp16."""
    accelerator.CPU_Accelerator.is_fp16_supported = lambda self: True


def start_from_a_high_scale(scaling: ModuleType) -> None:
    """Start DeepSpeed's loss scaler from the given scale, and let it fall fast."""
    made = scaling.DynamicLossScaler.__init__

    def from_high(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.cur_scale, self.scale_factor = float(os.environ["TINYHOST_FP16"]), 2.0**10
        self.delayed_shift = self.cur_hysteresis = 1

    scaling.DynamicLossScaler.__init__ = from_high


FP16_ACTIONS: Mapping[str, Action] = {
    "accelerate.accelerator": scale_losses_on_a_cpu,
    "deepspeed.accelerator.cpu_accelerator": serve_fp16_on_a_cpu,
    "deepspeed.runtime.fp16.loss_scaler": start_from_a_high_scale,
}
"""Of `TINYHOST_FP16`."""


def family_actions(name: str) -> dict[str, Action]:
    """`AFTER_IMPORT` of families/<name>.py, or of true/<name>.py for `true.<name>`.

    The kit is loaded by path, so that nothing of it enters `sys.path`.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("tinyhost", KIT / "__init__.py", submodule_search_locations=[str(KIT)])
    sys.modules["tinyhost"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)
    return import_module(f"tinyhost.{name if '.' in name else f'families.{name}'}").AFTER_IMPORT


def install(family: str | None = None) -> AfterImport:
    """Put one finder at the head of `sys.meta_path`. Idempotent: a second call returns the first finder."""
    for finder in sys.meta_path:
        if type(finder).__name__ == AfterImport.__name__:
            return finder
    actions: dict[str, Action] = {"torchvision.extension": declare_operators}
    actions["deepspeed.comm.torch"] = leave_operations_uncompiled
    if os.environ.get("TINYHOST_FP16"):
        actions |= FP16_ACTIONS
    if family:
        actions |= family_actions(family)
    finder = AfterImport(actions)
    sys.meta_path.insert(0, finder)
    return finder


def write_peak(path: str) -> None:
    """Write which CUDA device this process used, and the most memory that PyTorch held there, in GiB; nothing without one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        held, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        device = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
        Path(path).write_text(json.dumps({"device": device, "peak_gib": held / 2**30, "reserved_gib": reserved / 2**30}))


if __name__ == "sitecustomize":
    install(os.environ.get("TINYHOST_FAMILY"))
    if "TINYHOST_PEAK" in os.environ:
        atexit.register(write_peak, os.environ["TINYHOST_PEAK"])
    if "TINYHOST_HOOK" in os.environ:
        import_module("adt_plugin_hook")
