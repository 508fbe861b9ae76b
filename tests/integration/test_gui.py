"""The preset for the kohya_ss GUI, loaded and passed on by the GUI's own functions; skipped where there is no GUI."""

from __future__ import annotations

import ast
import json
import os
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adt_plugin.core.config import ADTConfig
from adt_plugin.options import add_adt_arguments, from_namespace
from tinyhost.run import REPOSITORY

GUI = Path(os.environ.get("KOHYA_GUI_DIR", Path.home() / "kohya_ss")) / "kohya_gui"
PRESET = REPOSITORY / "sample_configs" / "gui_sdxl_lora.json"

pytestmark = pytest.mark.skipif(not (GUI / "lora_gui.py").is_file(), reason="no kohya_ss GUI: set KOHYA_GUI_DIR")


def function_of(module: str, name: str, **namespace: Any) -> Any:
    """One function of the GUI, compiled from its source: the module itself would need gradio and much else."""
    tree = ast.parse((GUI / module).read_text(encoding="utf-8"))
    definition = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    log = SimpleNamespace(info=print, error=pytest.fail, warning=print)
    namespace |= {"log": log, "os": os, "json": json, "shlex": shlex}
    exec(compile(ast.Module([definition], []), module, "exec"), namespace)
    return namespace[name]


def loaded() -> dict[str, Any]:
    """What every field of the GUI holds after 'Load configuration file'; `None` where the preset leaves it alone."""
    names = [argument.arg for argument in definition_of_open().args.args]
    update = function_of("common_gui.py", "update_my_data", ALL_PRESET_MODELS=[])
    gradio = SimpleNamespace(Row=lambda visible: visible)
    open_configuration = function_of("lora_gui.py", "open_configuration", update_my_data=update, gr=gradio, presets_dir="")
    given = dict.fromkeys(names) | {
        "ask_for_file": False,
        "apply_preset": False,
        "file_path": str(PRESET),
        "training_preset": "",
    }
    _, *values, _ = open_configuration(**given)
    return dict(zip([name for name in names if name not in ("ask_for_file", "apply_preset", "file_path")], values, strict=True))


def definition_of_open() -> ast.FunctionDef:
    tree = ast.parse((GUI / "lora_gui.py").read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "open_configuration")


def test_every_key_of_the_preset_reaches_its_field() -> None:
    preset, fields = json.loads(PRESET.read_text(encoding="utf-8")), loaded()
    assert preset and all(fields[key] == value for key, value in preset.items())
    untouched = {"model_list", "training_preset"}
    assert all(value is None for name, value in fields.items() if name not in preset and name not in untouched)


def test_what_the_preset_adds_reaches_the_command_line_as_options_of_the_plugin() -> None:
    import argparse

    passing = function_of("common_gui.py", "run_cmd_advanced_training")
    command = passing([], additional_parameters=loaded()["additional_parameters"])
    parser = argparse.ArgumentParser()
    add_adt_arguments(parser)
    given = parser.parse_args(command)
    assert given.adt and from_namespace(given) == ADTConfig(memory="auto")


def test_the_preset_samples_the_prompts_of_the_other_presets(tmp_path: Path) -> None:
    """The field's text becomes the file that sd-scripts reads, which takes one prompt from every line."""
    fields = loaded()
    (tmp_path / "sample").mkdir()
    written = Path(function_of("class_sample_images.py", "create_prompt_file")(fields["sample_prompts"], str(tmp_path)))
    given = (PRESET.parent / "sample_prompts_1024.txt").read_text(encoding="utf-8")
    assert written.read_text(encoding="utf-8").splitlines() == [line for line in given.splitlines() if line[0] != "#"]
    assert fields["sample_every_n_steps"] > 0 and fields["sample_sampler"] == "euler"


def test_the_gui_splits_at_spaces_and_takes_quotation_marks_out() -> None:
    """Why the documents say that no value may hold a space."""
    passing = function_of("common_gui.py", "run_cmd_advanced_training")
    command = passing([], additional_parameters='--adt_backbone "my models/dino"')
    assert command == ["--adt_backbone", "my", "models/dino"]
