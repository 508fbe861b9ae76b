"""`adt doctor`: what it says of computers and work trees, ready and not."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import toml
from fakehost import run_python, write_fake_host

from adt_plugin.core.hub import download_command
from adt_plugin.host import checkup, doctor
from adt_plugin.host.families import FAMILIES, SD
from adt_plugin_hook import AdtPluginHook
from tinyhost.run import REPOSITORY

NVIDIA_CARD = checkup.nvidia_card


@pytest.fixture(autouse=True)
def a_computer_that_is_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But for what a test breaks: the tests' own computer may have no network and a torchvision of another build."""
    monkeypatch.setattr(checkup, "_import_error", lambda name: "")
    monkeypatch.setattr(sys, "meta_path", [AdtPluginHook(), *sys.meta_path])
    monkeypatch.setattr(checkup, "nvidia_card", lambda: "")
    monkeypatch.setattr(checkup, "hub_answers", lambda: True)
    monkeypatch.setattr(checkup, "_roots", lambda host: [])
    monkeypatch.chdir(tmp_path)


def ask(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """The exit status, and what was printed; the last line is the verdict."""
    status = 0
    try:
        checkup.main([*map(str, arguments), "--adt_backbone", "."])
    except SystemExit as ended:
        status = int(ended.code or 0)
    text = capsys.readouterr().out
    problems = sum(line.startswith("PROBLEM ") for line in text.splitlines())
    told = f"not ready: {problems} problem{'s' if problems > 1 else ''}, see above"
    assert text.splitlines()[-1] == (told if status else "ready")
    return status, text


def test_a_real_tree_is_ready_in_all_its_trainers(host_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = ask(capsys, host_dir)
    assert status == 0, text
    assert "missing" not in text
    scripts = [script for family in FAMILIES for script in family.scripts if (host_dir / script).is_file()]
    assert all(f" {script} (" in text for script in scripts) and text.count(": served") == len(scripts) >= 5
    assert "train_textual_inversion.py" in text.split("not served: ")[1]


def test_the_command_itself_runs(tmp_path: Path) -> None:
    """In a process of its own, whose torchvision may be what it is."""
    done = run_python("-m", "adt_plugin", "doctor", cwd=write_fake_host(tmp_path / "host", MASKS | {"train_util.py": GOOD}))
    verdict = done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stderr and done.returncode == int(verdict != "ready")
    assert "train_network.py (Stable Diffusion 1.x/2.x): served" in done.stdout


GOOD = """
def add_training_arguments(parser): ...
def verify_training_args(args): ...
def prepare_accelerator(args): ...
def get_noise_noisy_latents_and_timesteps(args, noise_scheduler, latents): ...
def get_sai_model_spec(state_dict, args): ...
def load_target_model(args, weight_dtype, accelerator): ...
class UNet2DConditionModel: ...
"""


MASKS = {"custom_train_functions.py": "def apply_masked_loss(loss, batch): ...\n"}


def test_a_tree_that_has_every_seam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = ask(capsys, write_fake_host(tmp_path / "host", MASKS | {"train_util.py": GOOD}), "-v")
    assert status == 0 and "sd-scripts v0.9 or older" in text
    assert "found    get_sai_model_spec (the metadata of saved files)  library/train_util.py:6" in text


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (GOOD.replace("prepare_accelerator", "make_accelerator"), "prepare_accelerator (the accelerator)  not in library"),
        (GOOD.replace("noise_scheduler, latents", "latents"), "get_noise_noisy_latents_and_timesteps (the clean"),
        (GOOD.replace("UNet2DConditionModel", "UNet"), "UNet2DConditionModel (the denoiser)  not in library"),
        ("not ( python", "add_training_arguments (the --adt options in the host's parser)  not in library/args.py, library/tr"),
    ],
)
def test_a_broken_tree_is_named_with_the_seam_and_ends_with_1(
    tmp_path: Path, broken: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = ask(capsys, write_fake_host(tmp_path / "host", MASKS | {"train_util.py": broken}), "-v")
    assert status == 1
    assert f"missing  {said}" in text
    assert "PROBLEM  train_network.py (Stable Diffusion 1.x/2.x): NOT SERVED: update the plugin" in text


def test_a_changed_signature_is_shown_beside_the_expected_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = GOOD.replace("noise_scheduler, latents", "latents")
    _, text = ask(capsys, write_fake_host(tmp_path / "host", MASKS | {"train_util.py": broken}), "-v")
    assert "library/train_util.py:5 has (args, latents), expected first (args, noise_scheduler, latents)" in text


def test_another_folder_is_not_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = ask(capsys, tmp_path)
    assert status == 1 and "PROBLEM  no sd-scripts here: run this in its folder or the GUI's" in text


@pytest.mark.parametrize("inside", ["gui", "gui/sd-scripts", "gui/sd-scripts/library"])
def test_no_argument_is_needed_inside_the_host_or_the_gui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    host = write_fake_host(tmp_path / "gui" / "sd-scripts", MASKS | {"train_util.py": GOOD})
    monkeypatch.chdir(tmp_path / inside)
    found = checkup.find_host(None)
    assert found is not None and found.resolve() == host.resolve()


def test_a_python_without_torch_is_told_so(tmp_path: Path) -> None:
    """No site-packages at all: the plugin's own files and the standard library."""
    host = write_fake_host(tmp_path / "host", MASKS | {"train_util.py": GOOD})
    code = f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}]; from adt_plugin.host.checkup import main; main([{str(host)!r}])"
    done = run_python("-I", "-S", "-c", code, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "PROBLEM  torch is missing in this Python: use the Python that trains" in done.stdout
    problems = done.stdout.count("\nPROBLEM ")  # all packages, and the plugin's start
    assert problems >= 8 and done.stdout.splitlines()[-1] == f"not ready: {problems} problems, see above"
    assert "its trainers are looked at once torch is there" in done.stdout


def test_a_broken_build_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = "operator torchvision::nms does not exist"
    monkeypatch.setattr(checkup, "_import_error", lambda name: broken if name == "torchvision" else "")
    status, text = ask(capsys, write_fake_host(tmp_path / "host", MASKS | {"train_util.py": GOOD}))
    assert status == 1 and f"cannot be imported ({broken}): install the build that belongs to your torch" in text
    assert text.splitlines()[-1] == "not ready: 1 problem, see above"


def test_a_plugin_that_does_not_start_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkup.plugin().state == checkup.OK
    monkeypatch.setattr(sys, "meta_path", [])
    found = checkup.plugin()
    assert found.state == checkup.PROBLEM and "--adt would not be known" in found.found and "-m adt_plugin" in found.remedy
    monkeypatch.setenv("ADT_PLUGIN_DISABLE", "1")
    assert "ADT_PLUGIN_DISABLE" in checkup.plugin().remedy


def without_cuda(monkeypatch: pytest.MonkeyPatch, built_for: str | None, card: str) -> checkup.Check:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", built_for)
    monkeypatch.setattr(checkup, "nvidia_card", lambda: card)
    return checkup.device()


def test_a_torch_without_cuda_beside_a_card_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    found = without_cuda(monkeypatch, None, "NVIDIA GeForce RTX 4090")
    assert found.state == checkup.PROBLEM and "built without CUDA" in found.found and "RTX 4090" in found.found
    assert "https://pytorch.org" in found.remedy


def test_a_torch_that_cannot_use_the_card_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    found = without_cuda(monkeypatch, "12.8", "NVIDIA GeForce RTX 4090")
    assert found.state == checkup.PROBLEM and "built for CUDA 12.8, cannot use the NVIDIA GeForce" in found.found


@pytest.mark.parametrize("built_for", [None, "12.8"])
def test_a_machine_without_a_card_is_a_note(monkeypatch: pytest.MonkeyPatch, built_for: str | None) -> None:
    assert without_cuda(monkeypatch, built_for, "").state == checkup.NOTE


def test_a_card_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A Card")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(total_memory=24 * 2**30))
    found = checkup.device()
    assert found.state == checkup.OK and found.found.startswith("A Card with 24 GiB")


@pytest.mark.skipif(os.name == "nt", reason="the command is a script of a shell")
@pytest.mark.parametrize(
    ("prints", "card"), [("GPU 0: NVIDIA A40 (UUID: GPU-1)", "NVIDIA A40"), ("No devices were found", ""), (None, "")]
)
def test_cards_are_what_their_own_command_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prints: str | None, card: str
) -> None:
    if prints is not None:
        executable(tmp_path / "nvidia-smi", f"#!/bin/sh\necho '{prints}'\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert NVIDIA_CARD() == card


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name == "nt", reason="commands are scripts elsewhere")
@pytest.mark.parametrize(
    ("head", "state"),
    [
        (f"#!{sys.executable}\n", checkup.OK),
        ("#!/bin/sh\n" + 3 * "'" + f'exec\' {sys.executable} "$0" "$@"\n', checkup.OK),
        ("#!/elsewhere/venv/bin/python3.10\n", checkup.NOTE),
        ("no script", checkup.NOTE),
    ],
)
def test_an_accelerate_of_another_python_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, state: str
) -> None:
    command = executable(tmp_path / "accelerate", head)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = checkup.launcher()
    assert found.state == state and str(command) in found.found
    assert state == checkup.OK or f"{sys.executable} -m accelerate.commands.launch" in found.remedy


def test_without_accelerate_on_the_path_the_launch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkup.launcher().state == checkup.NOTE


def test_the_oldest_versions_are_those_of_the_project() -> None:
    project = toml.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert dict(dependency.split(">=") for dependency in project["dependencies"]) == checkup.MINIMUM


@pytest.mark.parametrize(("version", "old"), [("0.24.1", True), ("0.25.0", False), ("0.9", True), ("1.0.dev0+abc", False)])
def test_a_package_that_is_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch, version: str, old: bool) -> None:
    real = checkup.importlib.metadata.version
    monkeypatch.setattr(checkup.importlib.metadata, "version", lambda name: version if name == "diffusers" else real(name))
    (found,) = (check for check in checkup.packages() if check.found.startswith("diffusers "))
    assert (found.state == checkup.PROBLEM) == old
    assert not old or "is older than 0.25" in found.found


def environment(folder: Path, *files: str) -> Path:
    for name in ("pyvenv.cfg", *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_the_environment_that_will_train_must_have_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_roots", lambda host: [host])
    lacking = environment(tmp_path / "venv")
    having = environment(tmp_path / ".venv", "lib/python3.11/site-packages/adt_plugin.pth")
    _, first, second = checkup.this_python(tmp_path)
    assert first.state == checkup.PROBLEM and str(lacking) in first.found and "-m pip install" in first.remedy
    assert second.state == checkup.NOTE and str(having) in second.found


@pytest.mark.parametrize(("answers", "state"), [(True, checkup.OK), (False, checkup.PROBLEM)])
def test_a_backbone_that_is_not_cached_has_to_be_reached(monkeypatch: pytest.MonkeyPatch, answers: bool, state: str) -> None:
    monkeypatch.setattr(checkup, "hub_answers", lambda: answers)
    found = checkup.backbone("nobody/nothing")
    assert found.state == state and (answers or download_command("nobody/nothing") in found.remedy)


def test_a_cached_backbone_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some--dino" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--dino" / "refs").mkdir()
    (tmp_path / "models--some--dino" / "refs" / "main").write_text("abc")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(checkup, "hub_answers", lambda: False)
    assert checkup.backbone("some/dino").state == checkup.OK


def test_a_full_disk_is_not_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**8))
    assert checkup.disk(tmp_path).state == checkup.PROBLEM


def test_methods_are_found_in_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("class A:\n    def f(self, x): ...\n\ndef f(): ...\n")
    assert {name: node.lineno for name, node in doctor.definitions(path).items()} == {"f": 4, "A.f": 2}
    assert doctor.classes(path) == {"A": 1}


def test_an_examination_covers_every_seam_of_a_session() -> None:
    findings = {finding.purpose for finding in doctor.examine(Path("nowhere"), SD)}
    assert {SD.noising[0].purpose, SD.vae[0].purpose, "the accelerator", "the mask of each batch"} <= findings
