"""Networks and captions as sd-scripts' own code applies them: the same outputs, from the same inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from host_forward import CAPTIONS, CASES
from safetensors.torch import load_file
from torch import Tensor

from adt_plugin.compare.captions import prompt_arguments
from adt_plugin.compare.networks import merged
from adt_plugin.compare.settings import Prompt, Settings
from tinyhost.models import TinyModel
from tinyhost.run import host_environment
from tinyhost.warm import run_warm

SCRIPT = Path(__file__).with_name("host_forward.py")
ALL = [
    pytest.param(family, case, id=f"{family}-{case}", marks=[pytest.mark.slow] if family == "sd3" else [])
    for family in CASES
    for case in CASES[family]
]
"""Each family is a process of the host."""

Forward = Callable[[str], tuple[Path, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def host_forward(host_dir: Path, tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Forward:
    """A family's files and outputs, made by the host in one process; skips where its modules lie elsewhere, before v0.11."""
    if not (host_dir / "library" / "model_io.py").is_file():
        pytest.skip(f"{host_dir.name} has no library/model_io.py")

    @cache
    def run(family: str) -> tuple[Path, dict[str, Tensor]]:
        folder, model = tmp_path_factory.mktemp(family), tiny_model(family)
        command = [sys.executable, str(SCRIPT), family, *map(str, (model.checkpoint, model.tokenizers, folder))]
        variables = host_environment(family, folder, hub_cache=model.tokenizers)
        status, out, err = run_warm(command, host_dir, variables, timeout=300)
        assert status == 0, (out + err)[-3000:]
        return folder, load_file(folder / "results.safetensors")

    return run


@torch.no_grad()
def outputs(pipeline: Any, family: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What diffusers' denoiser and text encoders make of the host's inputs."""
    latents, time, context, pooled = (given[f"inputs/{name}"] for name in ("latents", "time", "context", "pooled"))
    if family == "sd":
        found = pipeline.unet(latents, time, context).sample
    elif family == "sdxl":
        found = sdxl_unet(pipeline.unet, latents, time, context, pooled)
    elif family == "sd3":
        found = pipeline.transformer(latents, context, pooled, time).sample
    else:
        ids, guidance = {"txt_ids": torch.zeros(7, 3), "img_ids": torch.zeros(16, 3)}, torch.full((2,), 3.5)
        found = pipeline.transformer(latents, context, pooled, time / 1000, guidance=guidance, **ids).sample
    encoders = [pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)][: {"sd": 1, "sdxl": 2}.get(family, 0)]
    states = {f"text_encoder{i}": encoder(given["inputs/tokens"]).last_hidden_state for i, encoder in enumerate(encoders)}
    return {"denoiser": found, **states}


def sdxl_unet(unet: Any, latents: Tensor, time: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """The host hands over the embedded sizes, diffusers the sizes: its embedding is replaced by what the host was given."""
    handle = unet.add_embedding.register_forward_pre_hook(lambda module, inputs: (pooled,))
    try:
        added = {"text_embeds": pooled[:, :64], "time_ids": torch.zeros(len(pooled), 6)}
        return unet(latents, time, context, added_cond_kwargs=added).sample
    finally:
        handle.remove()


UNEXPLAINED = {("sdxl", "lora"): 1e-4}
"""Looser bounds: on some processors this one's denoiser differs by 4.5e-5 of its size, all others by 3e-6 at most."""


@pytest.mark.parametrize(("family", "case"), ALL)
def test_a_network_is_what_the_host_makes_of_it(host_forward: Forward, loaded: Any, family: str, case: str) -> None:
    folder, theirs = host_forward(family)
    base = outputs(loaded(family), family, theirs)
    with merged(loaded(family), family, "--lora a", folder / f"{case}.safetensors"):
        ours = outputs(loaded(family), family, theirs)
    for name, output in ours.items():
        size = theirs[f"{name}/base"].abs().max().item()
        assert torch.allclose(base[name], theirs[f"{name}/base"], atol=1e-5 * size), f"{name} of the base"
        bound = UNEXPLAINED.get((family, case), 1e-5)
        assert torch.allclose(output, theirs[f"{name}/{case}"], atol=bound * size), f"{name} of {case}"
    moved = (ours["denoiser"] - base["denoiser"]).abs().max() / base["denoiser"].abs().max()
    assert moved > 1e-3


@pytest.mark.parametrize("skip", [1, 2])
@pytest.mark.parametrize("length", [75, 150, 225])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_captions_are_encoded_as_the_host_encodes_them(
    host_forward: Forward, loaded: Any, small: Settings, family: str, length: int, skip: int
) -> None:
    """The longest caption is cut off by both in the same place; SDXL's host knows no clip_skip."""
    _, theirs = host_forward(family)
    prompts = [Prompt(text, "not " * 40) for text in CAPTIONS]
    settings = replace(small, max_token_length=length, clip_skip=skip)
    ours = prompt_arguments(loaded(family), family, prompts, settings)
    said = None if length == 75 else length
    wanted = theirs[f"sd/{said}/{None if skip == 1 else skip}"] if family == "sd" else theirs[f"sdxl/{said}"]
    assert ours["prompt_embeds"].shape == ours["negative_prompt_embeds"].shape == (len(CAPTIONS), length + 2, wanted.shape[2])
    assert torch.allclose(ours["prompt_embeds"], wanted, atol=1e-5)
    if family == "sdxl":
        assert torch.allclose(ours["pooled_prompt_embeds"], theirs[f"pooled/{said}"], atol=1e-5)
