"""Images are made once, kept under what decides them, and the same noise reaches every candidate."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from adt_plugin.compare import rendering
from adt_plugin.compare.families import SD, identify
from adt_plugin.compare.models import Parts
from adt_plugin.compare.rendering import Store, check_candidates, render_all, scheduler_for
from adt_plugin.compare.run import digests_of
from adt_plugin.compare.settings import Candidate, Sampling, Settings, content_digest
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.out_of_memory import OUT_OF_MEMORY
from tiny_compare import write_network


def store_of(settings: Settings) -> Store:
    return Store(settings, digests_of(settings))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, loaded: Any) -> dict[str, int]:
    """How often a model was loaded and images sampled; the model is the tiny one that is loaded already."""
    counts = {"loads": 0, "images": 0}
    genuine = rendering.sample

    def load(*_: Any) -> Any:
        counts["loads"] += 1
        return loaded("sd")

    def sample(pipeline: Any, family: Any, shots: Any, *rest: Any) -> Any:
        counts["images"] += len(shots)
        return genuine(pipeline, family, shots, *rest)

    monkeypatch.setattr(rendering, "load_pipeline", load)
    monkeypatch.setattr(rendering, "sample", sample)
    return counts


def pixels(store: Store) -> dict[tuple[str, Any], bytes]:
    return {key: Image.open(path).tobytes() for key, path in rendering.paths_by_shot(store).items()}


def test_one_model_makes_the_images_of_the_base_and_of_its_networks(small: Settings, counted: dict[str, int]) -> None:
    made = []
    store = store_of(small)
    render_all(store, made.append)
    assert counted == {"loads": 1, "images": 12} and sum(made) == 12
    found = pixels(store)
    assert all(found["base", shot] != found["plain", shot] for shot in small.shots())


def test_each_model_is_gone_before_the_next_one_is_loaded(
    small: Settings, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one on a card, not for two."""
    base, loads = small.candidates[0], []
    known = identify(base.flag, base.path)

    def load(*_: Any) -> Any:
        assert all(found() is None for found in loads)
        pipeline = type(loaded("sd"))(**loaded("sd").components)
        loads.append(weakref.ref(pipeline))
        return pipeline

    monkeypatch.setattr(rendering, "load_pipeline", load)
    monkeypatch.setattr(rendering, "identify", lambda *_: known)
    trained = tuple(Candidate(name, "checkpoint", Path(name)) for name in ("first", "second"))
    settings = replace(small, candidates=(base, *trained))
    render_all(Store(settings, {base.path: "0", Path("first"): "1", Path("second"): "2"}), lambda count: None)
    assert len(loads) == 3


def test_what_is_there_is_not_made_again_and_what_is_lost_is_the_same_again(small: Settings, counted: dict[str, int]) -> None:
    store = store_of(small)
    render_all(store, lambda _: None)
    before = pixels(store)
    render_all(store, lambda _: None)
    assert counted == {"loads": 1, "images": 12}
    lost = store.path(small.candidates[0], small.shots()[0])
    lost.unlink()
    render_all(store, lambda _: None)
    assert counted == {"loads": 2, "images": 13}
    assert largest_difference(before["base", small.shots()[0]], lost) <= 1  # alone instead of in a batch


def largest_difference(before: bytes, path: Path) -> int:
    return max(abs(a - b) for a, b in zip(before, Image.open(path).tobytes(), strict=True))


def test_an_interruption_keeps_whole_images_only(
    small: Settings, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Image.Image.save
    saved = []

    def save(image: Image.Image, *arguments: Any, **keywords: Any) -> None:
        if len(saved) == 3:
            arguments[0].write(b"half")
            raise KeyboardInterrupt
        saved.append(genuine(image, *arguments, **keywords))

    monkeypatch.setattr(Image.Image, "save", save)
    store = store_of(small)
    with pytest.raises(KeyboardInterrupt):
        render_all(store, lambda _: None)
    assert len(list(store.folder.iterdir())) == 3
    monkeypatch.undo()
    assert sum(len(store.missing(candidate)) for candidate in small.candidates) == 9


def test_a_checkpoint_has_a_model_of_its_own(small: Settings, counted: dict[str, int]) -> None:
    base = small.candidates[0]
    settings = replace(small, candidates=(base, Candidate("whole", "checkpoint", base.path)))
    store = store_of(settings)
    render_all(store, lambda _: None)
    assert counted["loads"] == 1  # the same content is the same request
    assert pixels(store)["whole", settings.shots()[0]] == pixels(store)["base", settings.shots()[0]]


def test_a_network_of_another_base_is_refused_before_any_image(
    small: Settings, counted: dict[str, int], tmp_path: Path
) -> None:
    path = write_network(tmp_path / "flux.safetensors", {"lora_unet_double_blocks_0_img_attn_qkv": (8, 8)})
    settings = replace(small, candidates=(*small.candidates, Candidate("other", "lora", path)))
    with pytest.raises(ConfigError, match="--lora other: .* does not have"):
        render_all(store_of(settings), lambda _: None)
    assert counted["images"] == 0


CHANGES = {
    "sampler": {"sampler": "euler"},
    "size": {"size": (64, 128)},
    "precision": {"dtype": "bfloat16"},
    "v": {"parts": Parts(v_parameterization=True)},
    "clip_skip": {"clip_skip": 2},
    "steps": {"samplings": (Sampling(3, 3.0),)},
    "guidance": {"samplings": (Sampling(2, 4.0),)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_an_image_is_in_its_digest(small: Settings, change: str) -> None:
    other = replace(small, **CHANGES[change])
    digests = digests_of(small)
    assert requests(small, digests).isdisjoint(requests(other, digests))


def requests(settings: Settings, digests: dict[Path, str]) -> set[str]:
    return {settings.request(candidate, digests, shot) for candidate in settings.candidates for shot in settings.shots()}


def test_strength_and_content_of_a_network_are_in_its_images_digest_and_not_in_the_bases(small: Settings) -> None:
    digests, (base, lora), shot = digests_of(small), small.candidates, small.shots()[0]
    stronger = replace(small, network_mul=2.0)
    other = digests | {lora.path: "other"}
    assert stronger.request(lora, digests, shot) != small.request(lora, digests, shot) != small.request(lora, other, shot)
    assert stronger.request(base, digests, shot) == small.request(base, other, shot) == small.request(base, digests, shot)


def test_batch_size_and_folder_are_not_in_the_digest(small: Settings, tmp_path: Path) -> None:
    other = replace(small, batch_size=1, out=tmp_path / "elsewhere")
    assert requests(other, digests_of(small)) == requests(small, digests_of(small))


def test_a_folders_digest_is_of_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = content_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = content_digest(tmp_path)
    (tmp_path / "b").write_text("y")
    assert len({first, second, content_digest(tmp_path)}) == 3


def test_the_sampler_is_the_one_that_is_named_on_the_models_schedule(loaded: Any, small: Settings) -> None:
    own = loaded("sd").scheduler
    settings = replace(small, sampler="dpm++", parts=Parts(v_parameterization=True))
    scheduler = scheduler_for(own, SD, settings)
    assert type(scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert torch.equal(scheduler.alphas_cumprod, own.alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"
    flow = loaded("flux").scheduler
    assert scheduler_for(flow, rendering.identify("--base", small.candidates[0].path).family, small) is not flow


def test_candidates_are_checked_before_a_model_is_loaded(small: Settings, tiny_model: Any, tmp_path: Path) -> None:
    base = small.candidates[0]
    flux = tiny_model("flux").checkpoint
    with pytest.raises(ConfigError, match=r"--checkpoint other is FLUX.1, but --base is Stable Diffusion"):
        check_candidates((base, Candidate("other", "checkpoint", flux)))
    with pytest.raises(ConfigError, match="--lora gone: there is no file"):
        check_candidates((base, Candidate("gone", "lora", tmp_path / "gone.safetensors")))
    with pytest.raises(ConfigError, match="--lora model: .* no LoRA or LyCORIS file"):
        check_candidates((base, Candidate("model", "lora", flux)))


OF_FAMILIES = {
    "flux": "lora_unet_double_blocks_0_img_attn_qkv",
    "sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv",
    "sdxl": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
}


@pytest.mark.parametrize("family", OF_FAMILIES)
def test_a_network_of_another_family_is_told_from_its_header(small: Settings, tmp_path: Path, family: str) -> None:
    path = write_network(tmp_path / "other.safetensors", {OF_FAMILIES[family]: (8, 8)})
    with pytest.raises(ConfigError, match="^--lora other: .* is a network of .*, but --base is Stable Diffusion 1.x"):
        check_candidates((small.candidates[0], Candidate("other", "lora", path)))


ATTENTION = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
UNFIT = {
    "another width": ({ATTENTION: (64, 24)}, 0.1, r"does not fit this base \(it reads 24 channels, the layer has \d+\)"),
    "a diverged training": ({ATTENTION: (64, 64)}, float("nan"), "weights that are not finite .* saved earlier in that run"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_network_that_cannot_be_merged_is_refused_before_any_image(
    small: Settings, counted: dict[str, int], tmp_path: Path, case: str
) -> None:
    layers, scale, sentence = UNFIT[case]
    path = write_network(tmp_path / "n.safetensors", layers, scale=scale)
    settings = replace(small, candidates=(*small.candidates, Candidate("other", "lora", path)))
    with pytest.raises(ConfigError, match=f"^--lora other: .*{sentence}"):
        render_all(store_of(settings), lambda _: None)
    assert counted["images"] == 0


@pytest.mark.parametrize("kind", [OUT_OF_MEMORY, RuntimeError])
@pytest.mark.parametrize("place", ["load_pipeline", "sample"])
def test_memory_that_runs_out_is_one_sentence_and_what_is_made_is_kept(
    small: Settings, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch, place: str, kind: type[RuntimeError]
) -> None:
    """While the model is loaded, or in the second batch."""
    genuine, calls = getattr(rendering, place), []

    def run_out(*arguments: Any) -> Any:
        calls.append(None)
        if place == "load_pipeline" or len(calls) > 1:
            raise kind("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore advice.")
        return genuine(*arguments)

    monkeypatch.setattr(rendering, place, run_out)
    store = store_of(replace(small, batch_size=2))
    with pytest.raises(ConfigError, match=r"Tried to allocate 2.00 GiB\): lower --batch_size .* or add --offload") as raised:
        render_all(store, lambda _: None)
    assert "\n" not in str(raised.value)
    assert len(list(store.folder.glob("*.png"))) == (2 if place == "sample" else 0)


def test_diffusers_is_quiet_while_images_are_made(small: Settings, counted: dict[str, int]) -> None:
    """It would name what it has cut off with every image; afterwards its level is what it was."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    levels = []
    render_all(store_of(small), lambda _: levels.append(logging.get_verbosity()))
    assert set(levels) == {logging.ERROR} and logging.get_verbosity() == before
