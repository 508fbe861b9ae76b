"""Captions encoded as sd-scripts does in training, long ones in chunks; and what is cut off is said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adt_plugin.compare.families import Model, tensor_names
from adt_plugin.compare.models import CLIP_H, CLIP_L, T5, Parts, tokenizer
from adt_plugin.compare.settings import CHUNK, Prompt, Settings
from adt_plugin.core.errors import ConfigError

ENDS = 2  # tokens of the start and the end
T5_LENGTHS = {"sd3": 256, "flux": 512, "schnell": 256}
"""Tokens that T5 reads, the last of which is the end: defaults of sd-scripts' `--t5xxl_max_token_length` and of diffusers."""


def prompt_arguments(pipeline: Any, family: str, prompts: Sequence[Prompt], settings: Settings) -> dict[str, Any]:
    """Return what a pipeline is to be called with for its prompts.

    Args:
        pipeline: of diffusers, in which the candidate's networks are merged.
        family: `sd`, `sdxl`, `sd3` or `flux`.
        prompts: of the batch.
        settings: for the number of tokens and `--clip_skip`.
    """
    wanted = {"prompt": [prompt.text for prompt in prompts], "negative_prompt": [prompt.negative for prompt in prompts]}
    if family == "flux":  # guidance is distilled: there is no negative prompt
        schnell = not pipeline.transformer.config.guidance_embeds
        return {"prompt": wanted["prompt"], "max_sequence_length": T5_LENGTHS["schnell" if schnell else "flux"]}
    if family == "sd3":
        return {**wanted, "max_sequence_length": T5_LENGTHS["sd3"]}
    chunks = settings.max_token_length // CHUNK
    found: dict[str, Any] = {}
    for name, texts in wanted.items():
        pooled_name = name.replace("prompt", "pooled_prompt_embeds")
        if family == "sd":
            found[f"{name}_embeds"] = encode_sd(pipeline, texts, chunks, settings.clip_skip)
        else:
            found[f"{name}_embeds"], found[pooled_name] = encode_sdxl(pipeline, texts, chunks)
    return found


@torch.no_grad()
def encode_sd(pipeline: Any, texts: Sequence[str], chunks: int, clip_skip: int) -> Tensor:
    """Return the prompts' states `(B, 75 chunks + 2, D)` of Stable Diffusion 1.x or 2.x.

    Args:
        pipeline: of diffusers.
        texts: the prompts.
        chunks: of 75 tokens.
        clip_skip: 1 for the last layer's output, 2 for the one before it.
    """
    encoder, tokens = pipeline.text_encoder, all_chunks(pipeline.tokenizer, texts, chunks)
    found = encoder(tokens.to(pipeline._execution_device), output_hidden_states=True)
    if clip_skip == 1:
        return joined(found.last_hidden_state, chunks)
    return joined(encoder.text_model.final_layer_norm(found.hidden_states[-clip_skip]), chunks)


@torch.no_grad()
def encode_sdxl(pipeline: Any, texts: Sequence[str], chunks: int) -> tuple[Tensor, Tensor]:
    """Return the prompts' states `(B, 75 chunks + 2, D)` of SDXL, and the first chunk's pooled ones `(B, D)`.

    They are the last but one layer's of both encoders, whatever `--clip_skip`: sd-scripts trains SDXL so.
    """
    states = []
    for tokenize, encoder in ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)):
        tokens = all_chunks(tokenize, texts, chunks).to(pipeline._execution_device)
        found = encoder(tokens, output_hidden_states=True)
        states.append(joined(found.hidden_states[-2], chunks))
    return torch.cat(states, dim=-1), found.text_embeds[::chunks]


def joined(states: Tensor, chunks: int) -> Tensor:
    """Join the states of chunks, `(B chunks, 77, D)`, to `(B, 75 chunks + 2, D)`: first start, last end, all between."""
    states = states.unflatten(0, (-1, chunks))
    return torch.cat([states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]], dim=1)


def all_chunks(tokenize: Any, texts: Sequence[str], chunks: int) -> Tensor:
    """Return the tokens `(B chunks, 77)` of prompts, each in this many chunks."""
    return torch.cat([chunks_of(tokenize, text, chunks) for text in texts])


def chunks_of(tokenize: Any, text: str, chunks: int) -> Tensor:
    """Return the tokens of one prompt in chunks, `(chunks, 77)`: cut every 75 tokens, each with a start and an end.

    As in sd-scripts: SD 1.x fills up with ends, so that a chunk without a caption is a start and ends; SD 2.x and SDXL's second
    encoder fill up with another token, and every chunk has its first end where its text ends.
    """
    length = CHUNK * chunks + ENDS
    tokens = tokenize(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids[0]
    start, inner, last = tokens[:1], tokens[1:-1].view(chunks, CHUNK), tokens[-1:]
    found = torch.cat([start.expand(chunks, 1), inner, last.expand(chunks, 1)], dim=1)
    end, padding = tokenize.eos_token_id, tokenize.pad_token_id
    if padding != end and chunks > 1:
        full = (found[:, -2] != end) & (found[:, -2] != padding)
        found[full, -1] = end
        found[found[:, 1] == padding, 1] = end
    return found


# What does not fit


def notes_of(settings: Settings, model: Model, lengths: Mapping[str, int]) -> list[str]:
    """Return what is to be said of the captions' lengths before any image is made, each in one sentence.

    Args:
        settings: of the comparison.
        model: the base.
        lengths: by candidate's name, the tokens that it was trained with, as far as files say it.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """
    notes = []
    reader, most = reader_of(model, settings)
    count = sum(is_longer(reader, prompt, most) for prompt in settings.prompts)
    if count:
        way_out = "shorten them, or train and compare with a longer --max_token_length"
        if not model.family.chunked or settings.max_token_length == 3 * CHUNK:
            way_out = "shorten them"
        notes.append(
            f"{count} of {len(settings.prompts)} prompts are longer than the {most - ENDS if model.family.chunked else most} "
            f"tokens that {model.family.title} reads here; the rest of them is cut off, for all candidates alike: {way_out}."
        )
    for name, length in lengths.items():
        if model.family.chunked and length != settings.max_token_length:
            notes.append(
                f"{name} was trained on captions of up to {length} tokens, all images here are made with up to "
                f"{settings.max_token_length} (--max_token_length)."
            )
    return notes


def is_longer(reader: Any, prompt: Prompt, most: int) -> bool:
    """Tell whether a prompt or its negative prompt has more tokens than are read."""
    return any(len(reader(text, verbose=False).input_ids) > most for text in (prompt.text, prompt.negative))


def reader_of(model: Model, settings: Settings) -> tuple[Any, int]:
    """Return the tokenizer that reads the most of a prompt, and how many tokens it reads, those of start and end included."""
    parts = settings.parts
    if model.family.chunked:
        name = CLIP_H if model.second else CLIP_L
        return _tokenizer(model, parts, "tokenizer", name), settings.max_token_length + ENDS
    part = "tokenizer_2" if model.family.name == "flux" else "tokenizer_3"
    if model.family.name == "sd3" and not _has_t5(model, parts):
        return _tokenizer(model, parts, "tokenizer", CLIP_L), CHUNK + ENDS
    schnell = model.family.name == "flux" and not _takes_guidance(model)
    return _tokenizer(model, parts, part, T5), T5_LENGTHS["schnell" if schnell else model.family.name]


def _tokenizer(model: Model, parts: Parts, part: str, name: str) -> Any:
    """Load a tokenizer as the model's loader does: from its folder, from `--model_config`, or the published one."""
    import transformers

    folder = model.path if model.path.is_dir() else parts.config if model.family.chunked else None
    if folder is None:
        return tokenizer(name, parts)
    try:
        kind: Any = transformers.T5TokenizerFast if name == T5 else transformers.CLIPTokenizer
        return kind.from_pretrained(folder / part, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder} has no tokenizer that can be read in {part}: give a whole diffusers folder.") from error


def _has_t5(model: Model, parts: Parts) -> bool:
    if model.path.is_dir():
        return (model.path / "text_encoder_3").is_dir()
    return parts.t5xxl is not None or any(".t5xxl." in name for name in tensor_names("--base", model.path))


def _takes_guidance(model: Model) -> bool:
    """Tell FLUX.1 [dev] from [schnell]."""
    if model.path.is_dir():
        config = json.loads((model.path / "transformer" / "config.json").read_text(encoding="utf-8"))
        return bool(config.get("guidance_embeds"))
    return any("guidance_in." in name for name in tensor_names("--base", model.path))
