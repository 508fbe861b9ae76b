"""Nothing that is loaded is trusted: no code of a model is run, nothing is unpickled, paths are paths."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import toml
import torch
from diffusers import AutoencoderTiny

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.discriminator import load_backbone
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.images.decoding import load_tiny_decoder
from adt_plugin.core.run import state
from adt_plugin.options import metadata
from toys import toy_turn

SHELL = "a b; touch pwned; $(touch pwned) `touch pwned` & 'x"
"""A folder's name that a shell would take for commands."""


def with_code_of_its_own(dino: Path, folder: Path, model_type: str) -> Path:
    """A model folder whose configuration and preprocessor ask for classes in a file beside them, which leaves a trace."""
    shutil.copytree(dino, folder)
    (folder / "modeling_evil.py").write_text(f"open({str(folder / 'trace')!r}, 'w')\nclass Evil: pass\n")
    names = {"config.json": ("AutoConfig", "AutoModel"), "preprocessor_config.json": ("AutoImageProcessor",)}
    for name, classes in names.items():
        settings = json.loads((folder / name).read_text())
        settings["auto_map"] = dict.fromkeys(classes, "modeling_evil.Evil")
        if name == "config.json":
            settings["model_type"] = model_type
        (folder / name).write_text(json.dumps(settings))
    return folder


def test_a_models_own_code_is_never_run(tiny_dino: Path, tmp_path: Path) -> None:
    folder = with_code_of_its_own(tiny_dino, tmp_path / "evil", "evil")
    with pytest.raises(ConfigError, match="brings code of its own, which is never run") as refused:
        load_backbone(str(folder))
    assert "\n" not in str(refused.value) and not (folder / "trace").exists()


def test_where_transformers_knows_the_model_its_own_code_is_passed_by(tiny_dino: Path, tmp_path: Path) -> None:
    folder = with_code_of_its_own(tiny_dino, tmp_path / "evil", "dinov2")
    assert load_backbone(str(folder)).patch_size == 14
    assert not (folder / "trace").exists()


def write_tiny_decoder(folder: Path, safe: bool) -> Path:
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    ).save_pretrained(folder, safe_serialization=safe)  # fmt: skip
    return folder


def test_a_pickled_decoder_is_refused(tmp_path: Path) -> None:
    assert load_tiny_decoder(str(write_tiny_decoder(tmp_path / "safe", safe=True)), 4)
    pickled = write_tiny_decoder(tmp_path / "pickled", safe=False)
    assert list(pickled.glob("*.bin"))
    with pytest.raises(ConfigError, match="--adt_decoder .* could not be loaded"):
        load_tiny_decoder(str(pickled), 4)


def test_decoder_and_heads_come_from_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="madebyollin/taesd is no folder"):
        load_tiny_decoder("madebyollin/taesd", 4)
    turn = toy_turn()
    with pytest.raises(state.StateError, match="is no whole discriminator state"):
        state.read(Path("somebody/heads"), turn.config, turn.discriminator)


def test_a_pickled_state_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(tmp_path / "trace"), "w"))

    torch.save({"heads": Evil()}, tmp_path / state.TENSORS)
    turn = toy_turn()
    with pytest.raises(state.StateError, match="is no whole discriminator state"):
        state.read(tmp_path, turn.config, turn.discriminator)
    assert not (tmp_path / "trace").exists()


def test_a_path_from_a_toml_file_is_a_path_and_nothing_else(
    tiny_dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = shutil.copytree(tiny_dino, tmp_path / SHELL / "dino")
    decoder = write_tiny_decoder(tmp_path / SHELL / "decoder", safe=True)
    heads = tmp_path / SHELL / "heads"
    heads.mkdir()
    turn = toy_turn()
    state.write(state.capture(turn, turn.config), heads)
    (tmp_path / "adt.toml").write_text(
        toml.dumps({"adt_backbone": str(backbone), "adt_decoder": str(decoder), "adt_disc_weights": str(heads)})
    )
    keys = toml.loads((tmp_path / "adt.toml").read_text())
    config = dataclasses.replace(ADTConfig(), **{name.removeprefix("adt_"): value for name, value in keys.items()})
    assert load_backbone(config.backbone).patch_size == 14
    assert load_tiny_decoder(config.decoder, 4)
    assert state.read(Path(config.disc_weights), turn.config, turn.discriminator)
    assert not list(tmp_path.rglob("pwned"))
    saved = metadata(config)
    assert (saved["ss_adt_backbone"], saved["ss_adt_decoder"], saved["ss_adt_disc_weights"]) == (
        "dino",
        "decoder",
        "heads",
    )
    assert not any(str(tmp_path) in value for value in saved.values())
