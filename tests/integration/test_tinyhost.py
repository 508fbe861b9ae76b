"""The test kit itself: the plain host trains on it, and its parts are what they claim to be."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, T5TokenizerFast

from adt_plugin.core.discriminator.loaders import plain_processor
from tinyhost import families, models, report, run, tokenizers, true_size, weights
from tinyhost.models import TinyModel
from tinyhost.run import TinyRun
from tinyhost.site import sitecustomize

# The plain host


PLAIN = {"ADT_PLUGIN_DISABLE": "1"}
SCRIPTS = [script for name in families.names() for script in families.load(name).SCRIPTS]


def assert_trained(completed: run.CompletedRun) -> None:
    """A file was saved whose tensors are finite."""
    tensors = completed.check().saved()
    assert tensors
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


def assert_trained_lora(completed: run.CompletedRun) -> None:
    """A LoRA was saved whose tensors are finite, and the up matrices have left their zero initialisation."""
    assert_trained(completed)
    up = [tensor for name, tensor in completed.saved().items() if name.endswith("lora_up.weight")]
    assert any(tensor.abs().max() > 0 for tensor in up)
    assert completed.metadata()["ss_steps"] == "2"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_plain_host_trains_with_every_script(run_tiny: TinyRun, script: str) -> None:
    completed = run_tiny(script=script, env=PLAIN)
    (assert_trained_lora if script.endswith("train_network.py") else assert_trained)(completed)


def test_the_plain_host_trains_a_lora_under_accelerate(run_tiny: TinyRun) -> None:
    assert_trained_lora(run_tiny(launcher="accelerate", env=PLAIN))


@pytest.mark.parametrize(
    ("family", "script", "options"),
    [
        ("sd2", "train_network.py", ()),
        ("sd2", "train_network.py", ("--v_parameterization",)),
        ("chroma", "flux_train_network.py", ()),
    ],
)
def test_the_plain_host_trains_a_lora_of_a_variant(
    run_tiny: TinyRun, tiny_model: TinyModel, family: str, script: str, options: tuple[str, ...]
) -> None:
    assert_trained_lora(run_tiny(*options, script=script, model=tiny_model(family), env=PLAIN))


def test_the_plain_host_trains_on_two_aspect_ratios(run_tiny: TinyRun, tiny_bucket_images: Path) -> None:
    completed = run_tiny(*run.BUCKETS, images=tiny_bucket_images, env=PLAIN)
    assert_trained_lora(completed)
    resolutions = {tuple(b["resolution"]) for b in json.loads(completed.metadata()["ss_bucket_info"])["buckets"].values()}
    assert resolutions == {(64, 64), (128, 64)}


@pytest.mark.slow
def test_the_plain_host_trains_a_lora_of_a_true_size_sdxl(run_tiny: TinyRun, tmp_path: Path) -> None:
    """Random weights of the real sizes (7 GB on disk, 12 GB of memory): a minute on a CPU."""
    model = true_size.write_sdxl(tmp_path)
    precision = ("--mixed_precision", "bf16", "--full_bf16", "--gradient_checkpointing", "--sdpa")
    caches = ("--network_train_unet_only", "--cache_text_encoder_outputs", "--cache_latents")
    try:
        completed = run_tiny(*precision, *caches, script="sdxl_train_network.py", model=model, env=PLAIN, timeout=1800)
    finally:
        model.checkpoint.unlink()
    assert_trained_lora(completed)


def test_a_host_error_is_reported_with_the_end_of_its_log(run_tiny: TinyRun) -> None:
    completed = run_tiny("--no_such_flag")
    assert completed.returncode == 2
    with pytest.raises(AssertionError, match="unrecognized arguments: --no_such_flag"):
        completed.check()


# Finding and starting the host


def make_host(folder: Path) -> Path:
    (folder / "library").mkdir(parents=True)
    (folder / "train_network.py").touch()
    return folder


def test_hosts_are_taken_from_the_variable_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [make_host(tmp_path / name) for name in ("b", "a")]
    monkeypatch.setenv("SD_SCRIPTS_DIR", os.pathsep.join(map(str, hosts)))
    assert run.find_hosts() == hosts
    assert run.find_host() == hosts[0]


def test_a_wrong_folder_in_the_variable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_SCRIPTS_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="SD_SCRIPTS_DIR: .* has no train_network.py"):
        run.find_hosts()


def test_without_the_variable_the_usual_places_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SD_SCRIPTS_DIR", raising=False)
    monkeypatch.setattr(run, "REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(run.Path, "home", lambda: tmp_path / "home")
    assert run.find_host() is None
    at_home = make_host(tmp_path / "home" / "sd-scripts")
    assert run.find_host() == at_home
    beside = make_host(tmp_path / "sd-scripts")
    assert run.find_host() == beside


def test_the_newest_line_is_the_default_and_one_of_each_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SD_SCRIPTS_DIR", raising=False)
    monkeypatch.setattr(run, "REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(run.Path, "home", lambda: tmp_path)
    lines = {"sd-scripts": "strategy_base.py", "sd-scripts-v0.11": "args.py", "sd-scripts-old": "train_util.py"}
    for name, file in (lines | {"sd-scripts-v0.11-too": "args.py"}).items():
        (make_host(tmp_path / name) / "library" / file).touch()
    assert [host.name for host in run.find_every_host()] == ["sd-scripts-v0.11", "sd-scripts", "sd-scripts-old"]
    assert run.find_hosts() == [tmp_path / "sd-scripts-v0.11"]


@pytest.mark.parametrize("own_group", [False, True])
def test_a_timeout_ends_the_launched_process_too(tmp_path: Path, own_group: bool) -> None:
    """torchrun's processes lead groups of their own."""
    launched = [sys.executable, "-c", "import time; time.sleep(60)"]
    launcher = [sys.executable, "-c", f"import subprocess; subprocess.run({launched!r}, start_new_session={own_group})"]
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run.run_to_end(launcher, tmp_path, dict(os.environ), timeout=1)
    # The launched process holds the same output pipe, so the call could not have returned while it lives.
    assert time.monotonic() - start < 30


# The start-up module of the host's process


@pytest.fixture
def fake_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An importable module `fake_host` whose only content is SIZE = 320; `sys.meta_path` is restored afterwards."""
    (tmp_path / "fake_host.py").write_text("SIZE = 320\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield
    sys.modules.pop("fake_host", None)


class GreedyFinder:
    """Like the plugin's finder, and as careless as one may be: it asks all other finders and doubles SIZE."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "fake_host" or getattr(self, "searching", False):
            return None
        self.searching = True
        found = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)
        spec = next((spec for spec in found if spec is not None), None)
        self.searching = False
        sitecustomize.run_after(spec, lambda module: setattr(module, "SIZE", module.SIZE * 2))
        return spec


@pytest.mark.parametrize("plugin_first", [True, False])
def test_the_import_hook_works_together_with_another_one(fake_module: None, plugin_first: bool) -> None:
    kit = sitecustomize.AfterImport({"fake_host": lambda module: setattr(module, "kit", True)})
    plugin = GreedyFinder()
    sys.meta_path[:0] = [plugin, kit] if plugin_first else [kit, plugin]
    fake_host = importlib.import_module("fake_host")
    assert fake_host.kit
    assert fake_host.SIZE == 640


def test_the_import_hook_leaves_a_missing_module_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    kit = sitecustomize.AfterImport({"no_such_module": lambda module: None})
    monkeypatch.setattr(sys, "meta_path", [kit, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module")


def test_starting_python_with_the_kit_is_silent_and_imports_no_torch() -> None:
    command = [sys.executable, "-W", "error", "-c", "import sys; print('torch' in sys.modules, 'sitecustomize' in sys.modules)"]
    env = {name: value for name, value in os.environ.items() if name != "TINYHOST_FAMILY"} | {"PYTHONPATH": str(run.SITE)}
    completed = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert (completed.stdout, completed.stderr) == ("False True\n", "")


def test_torchvision_is_left_alone_where_it_works() -> None:
    extension = SimpleNamespace(_has_ops=lambda: True)
    sitecustomize.declare_operators(extension)
    assert vars(extension).keys() == {"_has_ops"}


# Models, tokenizer, images


@pytest.mark.parametrize("family", families.names())
def test_a_tiny_model_follows_from_its_seed(tiny_model: TinyModel, family: str, tmp_path: Path) -> None:
    first = tiny_model(family).checkpoint.parent
    state = torch.get_rng_state()
    again = models.write_tiny_model(family, tmp_path).checkpoint.parent
    assert torch.equal(torch.get_rng_state(), state)
    files = [path.relative_to(first) for path in first.rglob("*.safetensors")]
    assert files
    assert all((again / file).read_bytes() == (first / file).read_bytes() for file in files)


def test_the_clip_tokenizer_spells_any_text() -> None:
    tokenizer = tokenizers.clip_tokenizer()
    ids = tokenizer("a red square, 正方形").input_ids
    assert (ids[0], ids[-1]) == (512, 513)
    assert len(ids) == 2 + len(b"aredsquare,") + len("正方形".encode())
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red square , 正方形"


def test_the_unigram_tokenizer_spells_ascii(tmp_path: Path) -> None:
    tokenizers.save_for_host(tokenizers.unigram_tokenizer(), tmp_path, "google/t5-v1_1-xxl")
    tokenizer = T5TokenizerFast.from_pretrained(tmp_path / "google_t5-v1_1-xxl")
    ids = tokenizer("a Red, 方", padding="max_length", max_length=11).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [*"▁a▁Red,▁", "<unk>", "</s>", "<pad>"]
    assert max(ids) < tokenizers.UNIGRAM_VOCAB_SIZE == len(tokenizer)


def test_random_weights_follow_from_their_tree_and_seed() -> None:
    tree = {"mlp": [weights.linear(4, 8), {}, weights.linear(8, 4, bias=False)], "norm": weights.norm(4), "pad": (2, 3)}
    tensors = weights.random_weights(tree)
    shapes = {"mlp.0.weight": (8, 4), "mlp.0.bias": (8,), "mlp.2.weight": (4, 8), "norm.weight": (4,), "norm.bias": (4,)}
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == shapes | {"pad": (2, 3)}
    assert torch.equal(tensors["norm.weight"], torch.ones(4))
    assert all((tensor != 0).all() for tensor in tensors.values())
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in weights.random_weights(tree).items())
    assert not torch.equal(tensors["pad"], weights.random_weights(tree, seed=1)["pad"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_weights_written_one_by_one_are_like_the_others(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "POOL", 997)  # every matrix comes round several times
    tree = {"layers": [weights.linear(64, 64), weights.linear(64, 64), weights.norm(8)], "scale": ()}
    written = load_file(weights.save_random(tree, tmp_path / "random.safetensors", dtype))
    expected = weights.random_weights(tree)
    assert {key: tensor.shape for key, tensor in written.items()} == {key: tensor.shape for key, tensor in expected.items()}
    assert {tensor.dtype for tensor in written.values()} == {getattr(torch, dtype)}
    first, second = (written[f"layers.{i}.weight"].float() for i in range(2))
    assert first.std().item() == pytest.approx(64**-0.5, rel=0.1) and not torch.equal(first, second)
    assert written["layers.0.bias"].float().std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(written["layers.2.weight"].float(), torch.ones(8))
    again = load_file(weights.save_random(tree, tmp_path / "again.safetensors", dtype))
    assert all(torch.equal(tensor.float(), again[key].float()) for key, tensor in written.items())


def test_a_model_that_does_not_fit_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(true_size.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9))
    with pytest.raises(OSError, match=r"a random SDXL takes 7.0 GB, but .* has 1.0 GB free"):
        true_size.write_sdxl(tmp_path)


def test_a_script_that_no_family_knows_is_an_error() -> None:
    assert families.family_of("sd3_train.py") == "sd3"
    with pytest.raises(ValueError, match="no family of the test kit trains with train_controlnet.py"):
        families.family_of("train_controlnet.py")


@pytest.mark.parametrize(("fixture", "tokens"), [("tiny_dino", 1 + 16), ("tiny_dino_registers", 1 + 4 + 16)])
def test_the_tiny_backbones_load_with_their_preprocessor(request: pytest.FixtureRequest, fixture: str, tokens: int) -> None:
    folder = request.getfixturevalue(fixture)
    output = AutoModel.from_pretrained(folder)(torch.zeros(2, 3, 56, 56), output_hidden_states=True)
    assert [tuple(hidden.shape) for hidden in output.hidden_states] == [(2, tokens, 32)] * 5
    processor = AutoImageProcessor.from_pretrained(folder, **plain_processor())
    assert (processor.image_mean, processor.image_std) == (models.IMAGENET_MEAN, models.IMAGENET_STD)


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_the_images_have_captions_and_the_sizes_asked_for(tiny_bucket_images: Path) -> None:
    pngs = sorted(tiny_bucket_images.glob("4_shapes/*.png"))
    assert [image_size(png) for png in pngs] == [(64, 64), (128, 64), (64, 64), (128, 64)]
    assert [png.with_suffix(".txt").read_text() for png in pngs] == list(models.CAPTIONS)
    assert set(json.loads((tiny_bucket_images / "meta.json").read_text())) == {str(png) for png in pngs}


# The closing words


def host_report(category: str, reason: str = "") -> SimpleNamespace:
    longrepr = ("test_x.py", 1, f"Skipped: {reason}") if category == "skipped" else None
    return SimpleNamespace(keywords={"host": 1}, longrepr=longrepr)


def test_the_summary_counts_host_tests_and_gives_reasons() -> None:
    stats = {
        "passed": [host_report("passed"), host_report("passed"), SimpleNamespace(keywords={})],
        "failed": [host_report("failed")],
        "skipped": [host_report("skipped", run.NO_HOST), host_report("skipped", run.NO_HOST), host_report("skipped", "other")],
    }
    assert report.host_summary(stats) == [
        "3 host tests ran: 2 passed, 1 failed",
        "2 host tests skipped: no sd-scripts work tree found; set SD_SCRIPTS_DIR",
        "1 host test skipped: other",
    ]


def test_the_summary_says_so_where_none_was_skipped() -> None:
    assert report.host_summary({"passed": [host_report("passed")]}) == ["1 host test ran: 1 passed", "0 host tests skipped"]


def test_the_summary_is_silent_without_host_tests() -> None:
    assert report.host_summary({"passed": [SimpleNamespace(keywords={})]}) == []
