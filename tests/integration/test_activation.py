"""The start-up hook: three ways in, next to no cost, and no way to hurt a Python that does not want it."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from adtruns import assert_same_weights
from fakehost import LAYOUTS, SCRIPT, write_fake_host
from fakehost import run_python as python
from installing import REPOSITORY, built

from tinyhost.run import SITE, TinyRun

PTH = REPOSITORY / "adt_plugin" / "host" / "adt_plugin.pth"
HOOK = REPOSITORY / "adt_plugin_hook.py"
NEW_MODULES = "import sys; print(*sorted(name for name in sys.modules if name.startswith('adt_plugin')))"


@pytest.fixture(params=LAYOUTS)
def fake_host(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_fake_host(tmp_path / "host", LAYOUTS[request.param])


# (a) the .pth file


def test_an_installed_plugin_adds_its_options_to_the_hosts_help(fake_host: Path) -> None:
    out = python("train_network.py", "--help", cwd=fake_host)
    assert out.returncode == 0 and "--adt_grad_steps" in out.stdout and "--learning_rate" in out.stdout


def test_without_adt_the_host_goes_its_way(fake_host: Path) -> None:
    out = python("train_network.py", "--learning_rate", "0.5", cwd=fake_host)
    assert (out.returncode, out.stdout, out.stderr) == (0, "verified by the host\nmodel loaded\n", "")


def test_it_works_from_anywhere_with_an_absolute_path_as_a_gui_calls_it(fake_host: Path, tmp_path: Path) -> None:
    assert "--adt_steps" in python(fake_host / "train_network.py", "--help", cwd=tmp_path).stdout


def test_the_switch_off_removes_every_trace(fake_host: Path) -> None:
    off = {"ADT_PLUGIN_DISABLE": "1"}
    assert "--adt" not in python("train_network.py", "--help", cwd=fake_host, env=off).stdout
    assert python("-c", NEW_MODULES, cwd=fake_host, env=off).stdout == "\n"


def test_a_bare_start_imports_nothing_but_the_hook() -> None:
    names = {}
    for off in ("0", "1"):
        out = python("-c", "import sys; print(*sys.modules)", cwd=REPOSITORY.parent, env={"ADT_PLUGIN_DISABLE": off})
        names[off] = set(out.stdout.split())
    assert names["0"] - names["1"] <= {HOOK.stem} and names["1"] <= names["0"]
    hooks = "import sys; print(sum(type(finder).__name__ == 'AdtPluginHook' for finder in sys.meta_path))"
    assert [python("-c", hooks, cwd=REPOSITORY.parent, env={"ADT_PLUGIN_DISABLE": off}).stdout for off in ("0", "1")] == [
        "1\n",
        "0\n",
    ]


def test_the_start_costs_less_than_two_milliseconds(tmp_path: Path) -> None:
    """The time that `site` spends on the file's line, in a fresh interpreter that has compiled the hook once."""
    shutil.copy(HOOK, tmp_path)
    line = next(line for line in PTH.read_text().splitlines() if line.startswith("import"))
    code = f"import sys, time; sys.path.append({str(tmp_path)!r}); began = time.perf_counter(); exec({line!r})\n"
    code += "print(time.perf_counter() - began, *(type(finder).__name__ for finder in sys.meta_path[:1]))"
    compileall.compile_file(tmp_path / HOOK.name, quiet=2)
    starts = [python("-I", "-S", "-c", code, cwd=REPOSITORY).stdout.split() for _ in range(3)]
    assert {hook for _, hook in starts} == {"AdtPluginHook"}
    assert min(float(seconds) for seconds, _ in starts) < 0.002


def broken_plugin(folder: Path) -> None:
    (folder / "adt_plugin").mkdir()
    (folder / "adt_plugin" / "__init__.py").write_text("raise RuntimeError('broken')")


def broken_entry(folder: Path) -> None:
    shutil.copytree(REPOSITORY / "adt_plugin", folder / "adt_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "adt_plugin" / "host" / "entry.py").write_text("def install(:\n")


@pytest.mark.parametrize(
    "damage",
    [lambda folder: None, broken_plugin, broken_entry],
    ids=["package gone", "package broken", "a syntax error in a module"],
)
def test_a_damaged_installation_leaves_python_and_the_host_running(tmp_path: Path, damage) -> None:  # noqa: ANN001
    """The start-up files alone in a site folder, as after half an uninstallation."""
    shutil.copy(PTH, tmp_path)
    shutil.copy(HOOK, tmp_path)
    damage(tmp_path)
    bare, run = starts_in(tmp_path)
    assert (bare.returncode, bare.stdout, bare.stderr) == (0, "started\n", "")
    assert (run.returncode, run.stdout) == (0, "verified by the host\nmodel loaded\n")
    (said,) = set(run.stderr.splitlines())
    assert said.startswith("adt_plugin could not ") and "so --adt is not available: " in said


def test_a_pth_file_left_behind_alone_does_nothing(tmp_path: Path) -> None:
    shutil.copy(PTH, tmp_path)
    bare, run = starts_in(tmp_path)
    assert (bare.returncode, bare.stdout, bare.stderr) == (0, "started\n", "")
    assert (run.returncode, run.stdout, run.stderr) == (0, "verified by the host\nmodel loaded\n", "")


def starts_in(folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Start a Python whose only site folder is this one, first for nothing, then for a host."""
    host = write_fake_host(folder / "host", LAYOUTS["v0.11"])
    start = "import site, sys; sys.argv = ['x']; "
    start += f"sys.path[:0] = [{str(host)!r}, {str(folder)!r}]; site.addsitedir({str(folder)!r}); "
    codes = ("print('started')", "import runpy; runpy.run_path('host/train_network.py')")
    return [python("-I", "-S", "-c", start + code, cwd=folder) for code in codes]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(broken_plugin, id="package broken"),
        pytest.param(broken_entry, id="a syntax error in a module", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_plugin_leaves_the_real_host_training_as_without_it(run_tiny: TinyRun, tmp_path: Path, damage) -> None:  # noqa: ANN001
    """The start-up file of the installation, and a package that cannot be imported."""
    damage(tmp_path)
    damaged = run_tiny(env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(SITE)])})
    assert "so --adt is not available: " in damaged.stderr
    assert_same_weights(damaged, run_tiny(env={"ADT_PLUGIN_DISABLE": "1"}))


def test_wheel_and_editable_install_both_carry_the_start_up_files(tmp_path: Path) -> None:
    for kind in ("wheel", "editable"):
        with zipfile.ZipFile(built(kind, tmp_path / kind)) as archive:
            assert archive.read(PTH.name).decode() == PTH.read_text()
            assert archive.read(HOOK.name).decode() == HOOK.read_text()
            assert ("adt_plugin/py.typed" in archive.namelist()) == (kind == "wheel")
            entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
            assert "adt = adt_plugin.__main__:main" in archive.read(entry_points).decode()


@pytest.fixture(scope="module", params=["repository", "sdist"])
def unpacked_wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the wheel installs, built from the repository or from a source distribution of it."""
    folder, source = tmp_path_factory.mktemp("wheel"), REPOSITORY
    if request.param == "sdist":
        archive = built("sdist", folder / "source")
        shutil.unpack_archive(archive, folder / "source")
        source = folder / "source" / archive.name.removesuffix(".tar.gz")
    shutil.unpack_archive(built("wheel", folder / "built", source), folder / "site", "zip")
    return folder / "site"


def test_the_wheel_has_every_file_of_the_package(unpacked_wheel: Path) -> None:
    """Modules, the miniature's weights, the comparison's page; the start-up file is the one that lies elsewhere."""

    def files(root: Path) -> set[Path]:
        found = (path for path in (root / "adt_plugin").rglob("*") if path.is_file() and path.suffix != ".pyc")
        return {path.relative_to(root) for path in found}

    assert files(unpacked_wheel) == files(REPOSITORY) - {PTH.relative_to(REPOSITORY)}
    assert {path.suffix for path in files(unpacked_wheel)} == {".py", ".typed", ".safetensors", ".json", ".jsonl", ".html"}


def test_what_the_wheel_installs_hooks_into_the_host_by_itself(unpacked_wheel: Path, fake_host: Path) -> None:
    """Its files alone: only the libraries come from the environment that runs this test."""
    libraries = [entry for entry in sys.path if entry and not (Path(entry) / "adt_plugin").is_dir() and Path(entry) != SITE]
    start = f"import runpy, site, sys; sys.path[:] = {[str(fake_host), str(unpacked_wheel), *libraries]!r}\n"
    start += f"site.addsitedir({str(unpacked_wheel)!r}); sys.argv = ['train_network.py', '--help']\n"
    start += "try: runpy.run_path('train_network.py')\n"
    start += "finally: print(*(sys.modules[name].__file__ for name in ('adt_plugin', 'adt_plugin_hook')))\n"
    out = python("-I", "-S", "-c", start, cwd=fake_host)
    assert (out.returncode, out.stderr) == (0, "") and "--adt_grad_steps" in out.stdout
    loaded = (unpacked_wheel / "adt_plugin" / "__init__.py", unpacked_wheel / HOOK.name)
    assert out.stdout.splitlines()[-1].split() == [str(path) for path in loaded]


# (b) the launcher


def test_the_launcher_hooks_in_where_pth_files_are_ignored(fake_host: Path) -> None:
    """`-S` skips all `.pth` files; the packages come by path."""
    launch = f"import runpy, sys; sys.path[:0] = {[str(REPOSITORY), *sys.path]!r}; "
    launch += "sys.argv = ['adt_plugin', 'train_network.py', '--help']; runpy.run_module('adt_plugin', run_name='__main__')"
    out = python("-S", "-c", launch, cwd=fake_host)
    assert out.returncode == 0 and "--adt_steps" in out.stdout


def test_the_launcher_names_a_script_that_is_not_there(tmp_path: Path) -> None:
    out = python("-m", "adt_plugin", "no_such.py", cwd=tmp_path)
    assert out.returncode == 1 and "no_such.py is neither a command nor a file" in out.stderr


def test_the_launcher_shows_its_usage(tmp_path: Path) -> None:
    assert python("-m", "adt_plugin", cwd=tmp_path).stdout.startswith("usage: python -m adt_plugin")


# (c) the explicit line


@pytest.mark.parametrize("before", [True, False], ids=["before the host's imports", "after them"])
def test_a_fork_registers_with_one_line(tmp_path: Path, before: bool) -> None:
    line = "import adt_plugin; adt_plugin.register()\n"
    no_hook = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'AdtPluginHook']\n"
    script = no_hook + (line + SCRIPT if before else SCRIPT.replace("import adt_user\n", line))
    host = write_fake_host(tmp_path / "host", LAYOUTS["v0.11"], script)
    assert "--adt_steps" in python("train_network.py", "--help", cwd=host).stdout


# What goes wrong


def test_a_library_that_is_not_the_host_is_left_alone_with_a_word(tmp_path: Path) -> None:
    host = write_fake_host(tmp_path / "host", {"train_util.py": "x = 1\n"}, "import library.train_util as t; print(t.x)")
    out = python("train_network.py", cwd=host)
    assert (out.returncode, out.stdout) == (0, "1\n")
    assert "--adt is not available: the seam verify_training_args" in out.stderr


def test_a_changed_signature_is_named_with_file_expectation_and_finding(tmp_path: Path) -> None:
    changed = (
        LAYOUTS["v0.10"]["train_util.py"]
        .replace("(parser, support", "(argument_parser, support")
        .replace("parser.add", "argument_parser.add")
    )
    out = python("train_network.py", "--adt", cwd=write_fake_host(tmp_path / "host", {"train_util.py": changed}))
    assert out.returncode == 2 and "unrecognized arguments: --adt" in out.stderr
    assert (
        "train_util.py has changed: expected first parameters (parser), found (argument_parser, support_dreambooth)"
        in out.stderr
    )


def test_an_unknown_key_stops_before_anything_is_loaded_even_without_the_switch(tmp_path: Path) -> None:
    script = SCRIPT.replace("parse_args()", "parse_args(namespace=argparse.Namespace(adt_step=3))")
    out = python("train_network.py", cwd=write_fake_host(tmp_path / "host", LAYOUTS["v0.10"], script))
    assert out.returncode == 1 and "model loaded" not in out.stdout
    assert out.stderr.strip() == "adt_plugin: unknown option adt_step: did you mean adt_steps?"


def test_a_toml_that_asks_for_adt_stops_where_the_options_could_not_be_added(tmp_path: Path) -> None:
    """argparse rejects an unknown --adt by itself, but lets a TOML key pass."""
    changed = LAYOUTS["v0.10"]["train_util.py"].replace("(parser, support", "(argument_parser, support")
    changed = changed.replace("parser.add", "argument_parser.add").replace("argument_argument_", "argument_")
    script = SCRIPT.replace("parse_args()", "parse_args(namespace=argparse.Namespace(adt=True))")
    out = python("train_network.py", cwd=write_fake_host(tmp_path / "host", {"train_util.py": changed}, script))
    assert out.returncode == 1 and "model loaded" not in out.stdout
    assert "adt_plugin: the seam add_training_arguments" in out.stderr


@pytest.mark.parametrize("value", ["'false'", "1"])
def test_the_switch_must_be_true_or_false(tmp_path: Path, value: str) -> None:
    script = SCRIPT.replace("parse_args()", f"parse_args(namespace=argparse.Namespace(adt={value}))")
    out = python("train_network.py", cwd=write_fake_host(tmp_path / "host", LAYOUTS["v0.11"], script))
    assert out.returncode == 1 and "adt_plugin: adt must be true or false" in out.stderr
