"""`python -m adt_plugin doctor`: what it says of real and of broken work trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakehost import run_python, write_fake_host

from adt_plugin.host import doctor
from adt_plugin.host.families import FAMILIES, SD


def ask(folder: Path, cwd: Path) -> tuple[int, str]:
    done = run_python("-m", "adt_plugin", "doctor", folder, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_real_tree_is_served_in_all_its_trainers(host_dir: Path, tmp_path: Path) -> None:
    status, text = ask(host_dir, tmp_path)
    assert status == 0 and "missing" not in text
    scripts = [script for family in FAMILIES for script in family.scripts if (host_dir / script).is_file()]
    assert all(f"\n{script} (" in text for script in scripts) and text.count(": served") == len(scripts) >= 5
    assert "train_textual_inversion.py" in text.split("not served: ")[1]


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


def test_a_tree_that_has_every_seam(tmp_path: Path) -> None:
    status, text = ask(write_fake_host(tmp_path / "host", MASKS | {"train_util.py": GOOD}), tmp_path)
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
def test_a_broken_tree_is_named_with_the_seam_and_ends_with_1(tmp_path: Path, broken: str, said: str) -> None:
    status, text = ask(write_fake_host(tmp_path / "host", MASKS | {"train_util.py": broken}), tmp_path)
    assert status == 1
    assert f"missing  {said}" in text
    assert "train_network.py (Stable Diffusion 1.x/2.x): NOT SERVED" in text


def test_a_changed_signature_is_shown_beside_the_expected_one(tmp_path: Path) -> None:
    broken = GOOD.replace("noise_scheduler, latents", "latents")
    _, text = ask(write_fake_host(tmp_path / "host", MASKS | {"train_util.py": broken}), tmp_path)
    assert "library/train_util.py:5 has (args, latents), expected first (args, noise_scheduler, latents)" in text


def test_another_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    status, text = ask(tmp_path, tmp_path)
    assert status == 1 and text == f"adt_plugin: {tmp_path} has no train_network.py: give the folder of sd-scripts.\n"


def test_methods_are_found_in_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("class A:\n    def f(self, x): ...\n\ndef f(): ...\n")
    assert {name: node.lineno for name, node in doctor.definitions(path).items()} == {"f": 4, "A.f": 2}
    assert doctor.classes(path) == {"A": 1}


def test_an_examination_covers_every_seam_of_a_session() -> None:
    findings = {finding.purpose for finding in doctor.examine(Path("nowhere"), SD)}
    assert {SD.noising.purpose, SD.vae[0].purpose, "the accelerator", "the mask of each batch"} <= findings
