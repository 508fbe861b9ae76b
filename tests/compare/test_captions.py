"""How long captions may be, and what is said of those that are longer. Their encoding: test_host_forward.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adt_plugin.compare import cli
from adt_plugin.compare.captions import chunks_of, notes_of, prompt_arguments
from adt_plugin.compare.families import identify
from adt_plugin.compare.settings import Candidate, Prompt, Settings, trained_lengths
from tiny_compare import parts_of
from tinyhost.models import TinyModel

LONG = "many many words " * 50
"""650 letters, each a token of the tests' tokenizers."""


def lora_of(path: Path, **metadata: str) -> Path:
    save_file({"lora_unet_x.alpha": torch.ones(1)}, path, {f"ss_{name}": value for name, value in metadata.items()})
    return path


@pytest.mark.parametrize(
    ("family", "tokens", "way_out"),
    [
        ("sd", 75, "or train and compare with a longer --max_token_length"),
        ("sdxl", 75, "or train and compare with a longer --max_token_length"),
        ("sd3", 256, "shorten them."),
        ("flux", 512, "shorten them."),
    ],
)
def test_what_is_cut_off_is_counted_once(
    tiny_model: TinyModel, small: Settings, family: str, tokens: int, way_out: str
) -> None:
    model = tiny_model(family)
    prompts = (Prompt(LONG), Prompt("a dog", LONG), Prompt("a cat"))
    settings = replace(small, prompts=prompts, parts=parts_of(model))
    (note,) = notes_of(settings, identify("--base", model.checkpoint), {})
    assert f"2 of 3 prompts are longer than the {tokens} tokens that" in note and note.endswith(way_out.rstrip(".") + ".")
    assert notes_of(replace(settings, prompts=prompts[2:]), identify("--base", model.checkpoint), {}) == []


def test_a_longer_caption_fits_a_longer_encoding(tiny_model: TinyModel, small: Settings) -> None:
    base = identify("--base", tiny_model("sd").checkpoint)
    settings = replace(small, prompts=(Prompt("letters " * 20),))
    assert len(notes_of(settings, base, {})) == 1
    assert notes_of(replace(settings, max_token_length=150), base, {}) == []


def test_chunks_of_an_encoder_that_fills_up_with_another_token_have_their_first_end_where_the_text_ends(loaded: Any) -> None:
    reader = loaded("sdxl").tokenizer_2
    start, end, padding = reader.bos_token_id, reader.eos_token_id, 0
    one, two = chunks_of(reader, "a" * 75, 2).tolist()
    assert (one[0], one[-1]) == (start, end) and end not in one[1:-1]
    assert two == [start, end, *[padding] * 75]
    short = chunks_of(reader, "a", 1)[0].tolist()
    assert short[0] == start and short[2:] == [end, *[padding] * 74]


def test_both_of_a_long_captions_ends_change_the_encoding(loaded: Any, small: Settings) -> None:
    prompts = [Prompt("x" * 100 + end) for end in "ab"]
    short, whole = (
        prompt_arguments(loaded("sd"), "sd", prompts, replace(small, max_token_length=length))["prompt_embeds"]
        for length in (75, 150)
    )
    assert torch.equal(short[0], short[1]) and not torch.equal(whole[0], whole[1])


def test_the_length_is_that_of_training(tmp_path: Path, tiny_model: TinyModel) -> None:
    long, usual, silent = (
        Candidate(name, "lora", lora_of(tmp_path / f"{name}.safetensors", **said))
        for name, said in {"long": {"max_token_length": "225"}, "usual": {"max_token_length": "None"}, "silent": {}}.items()
    )
    assert trained_lengths([long, usual, silent]) == {"long": 225, "usual": 75}
    base = identify("--base", tiny_model("sd").checkpoint)
    assert cli.token_length(None, base, [usual, long]) == 225
    assert cli.token_length(150, base, [usual, long]) == 150
    assert cli.token_length(None, base, [silent]) == 75


def test_a_length_that_is_not_that_of_training_is_said(tiny_model: TinyModel, small: Settings) -> None:
    base = identify("--base", tiny_model("sd").checkpoint)
    (note,) = notes_of(replace(small, max_token_length=225), base, {"plain": 75, "adt": 225})
    assert note == (
        "plain was trained on captions of up to 75 tokens, all images here are made with up to 225 (--max_token_length)."
    )
