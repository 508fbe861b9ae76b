"""The images: the same noise for every candidate, the model loaded once, each image kept under the digest of its request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adt_plugin.compare.captions import prompt_arguments
from adt_plugin.compare.families import FAMILIES, Family, Model, identify, tensor_names
from adt_plugin.compare.memory import memory_for
from adt_plugin.compare.models import load_pipeline
from adt_plugin.compare.networks import check_network_names, check_weights, family_of, merged, places_of
from adt_plugin.compare.settings import Candidate, Sampling, Settings, Shot
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.out_of_memory import free_what_is_cached
from adt_plugin.core.run.files import replacement

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

SAMPLERS = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}
"""Name -> diffusers' scheduler and its options: deterministic ones, so that the first noise decides the image."""


class Store:
    """Images on disk, each under the digest of its request: what is there is not made again.

    Args:
        settings: of the comparison.
        digests: content of every file that takes part.
    """

    def __init__(self, settings: Settings, digests: dict[Path, str]) -> None:
        self.settings, self.digests = settings, digests
        self.folder = settings.out / "images"

    def path(self, candidate: Candidate, shot: Shot) -> Path:
        """Return where an image lies, or will."""
        return self.folder / f"{self.settings.request(candidate, self.digests, shot)}.png"

    def missing(self, candidate: Candidate) -> list[Shot]:
        """Return the candidate's images that are yet to be made."""
        return [shot for shot in self.settings.shots() if not self.path(candidate, shot).is_file()]

    def save(self, candidate: Candidate, shot: Shot, image: Any) -> None:
        """Write an image, whole or not at all."""
        with replacement(self.path(candidate, shot)) as file:
            image.save(file, format="PNG")


def render_all(store: Store, advance: Callable[[int], None]) -> None:
    """Make all images that are missing: those of the base and its networks on one model, each checkpoint's on its own.

    Args:
        store: where they go.
        advance: called with the number of images made.

    Raises:
        ConfigError: a model or network cannot be loaded.
    """
    candidates = store.settings.candidates
    on_base = [candidate for candidate in candidates if candidate.kind != "checkpoint"]
    groups = [on_base, *([candidate] for candidate in candidates if candidate.kind == "checkpoint")]
    for group in groups:
        if any(map(store.missing, group)):
            with _quiet(), memory_for("the images", "lower --batch_size or --size, or add --offload"):
                _render_group(store, group, candidates[0] if group is on_base else group[0], advance)
            free_what_is_cached(torch.device(store.settings.device))  # there is room for one model, not for two


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers' warnings back, which come with every image: prompts that are too long have been counted before."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of what a pipeline consists of, within our own bar
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def _render_group(store: Store, group: Sequence[Candidate], source: Candidate, advance: Callable[[int], None]) -> None:
    """Make the missing images of candidates that share one model, which nothing holds any more afterwards."""
    model = identify(source.flag, source.path)
    pipeline = load_onto_device(source, model, store.settings)
    check_networks(pipeline, model.family, group)
    for candidate in filter(store.missing, group):
        with network_of(candidate, pipeline, model.family, store.settings):
            _render(store, candidate, pipeline, model.family, advance)


def check_networks(pipeline: Any, family: Family, candidates: Sequence[Candidate]) -> None:
    """Raise ConfigError if a network does not fit the loaded model, before any image is made."""
    places = places_of(pipeline, family.name)
    for candidate in candidates:
        if candidate.kind == "lora":
            check_weights(candidate.flag, candidate.path, places)


def load_onto_device(source: Candidate, model: Model, settings: Settings) -> Any:
    """Load a pipeline with the settings' sampler onto their device."""
    pipeline = load_pipeline(source.flag, model, settings.parts, DTYPES[settings.dtype])
    pipeline.scheduler = scheduler_for(pipeline.scheduler, model.family, settings)
    if settings.offload:
        pipeline.enable_model_cpu_offload(device=settings.device)
    else:
        pipeline.to(settings.device)
    return pipeline


def scheduler_for(scheduler: Any, family: Family, settings: Settings) -> Any:
    """Return the sampler that the settings name, on the model's own noise schedule; flow models keep theirs."""
    import diffusers

    if family.flow:
        return scheduler
    name, options = SAMPLERS[settings.sampler]
    if settings.parts.v_parameterization:
        options = {**options, "prediction_type": "v_prediction"}
    return getattr(diffusers, name).from_config(scheduler.config, **options)


def network_of(candidate: Candidate, pipeline: Any, family: Family, settings: Settings) -> AbstractContextManager[Any]:
    """Return the context in which a pipeline is the candidate."""
    if candidate.kind != "lora":
        return nullcontext()
    return merged(pipeline, family.name, candidate.flag, candidate.path, settings.network_mul)


def _render(store: Store, candidate: Candidate, pipeline: Any, family: Family, advance: Callable[[int], None]) -> None:
    for sampling, group in groupby(store.missing(candidate), key=lambda shot: shot.sampling):
        shots = list(group)
        for start in range(0, len(shots), store.settings.batch_size):
            batch = shots[start : start + store.settings.batch_size]
            for shot, image in zip(batch, sample(pipeline, family, batch, sampling, store.settings), strict=True):
                store.save(candidate, shot, image)
            advance(len(batch))


def sample(pipeline: Any, family: Family, shots: Sequence[Shot], sampling: Sampling, settings: Settings) -> list[Any]:
    """Sample a batch of images with one number of steps and one guidance scale; PIL images."""
    width, height = settings.size
    options: dict[str, Any] = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.cfg,
        "width": width,
        "height": height,
        "latents": first_noise(pipeline, family, [shot.seed for shot in shots], settings.size),
    }
    prompts = prompt_arguments(pipeline, family.name, [shot.prompt for shot in shots], settings)
    return list(pipeline(**prompts, **options).images)


def first_noise(pipeline: Any, family: Family, seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Draw the first noise `(B, C, h, w)` on the CPU in float32, from each seed alone: the same for every candidate and device.

    FLUX takes it packed, `(B, h / 2 * w / 2, 4 C)`.
    """
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    channels = denoiser.config.in_channels // (4 if family.name == "flux" else 1)
    height, width = (side // pipeline.vae_scale_factor for side in reversed(size))
    draws = [torch.randn(channels, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    noise = torch.stack(draws).to(denoiser.dtype)
    if family.name == "flux":
        noise = pipeline._pack_latents(noise, len(seeds), channels, height, width)
    return noise.to(pipeline._execution_device)


def check_candidates(candidates: Sequence[Candidate]) -> Model:
    """Check every file's header before a model is loaded, and return the base.

    Raises:
        ConfigError: a file is missing, of another kind, or of another family than the base.
    """
    base = identify(candidates[0].flag, candidates[0].path)
    for candidate in candidates[1:]:
        if candidate.kind == "lora":
            if not candidate.path.is_file():
                raise ConfigError(f"{candidate.flag}: there is no file {candidate.path}.")
            _check_network(candidate, base)
        elif (other := identify(candidate.flag, candidate.path)).family != base.family:
            raise ConfigError(
                f"{candidate.flag} is {other.family.title}, but --base is {base.family.title}: compare like with like."
            )
    return base


def _check_network(candidate: Candidate, base: Model) -> None:
    """Raise ConfigError unless a file's header is that of a network, and one of the base's family as far as it tells."""
    names = list(tensor_names(candidate.flag, candidate.path))
    check_network_names(candidate.flag, candidate.path, names)
    own = family_of(names)
    if own not in (None, base.family.name):
        raise ConfigError(
            f"{candidate.flag}: {candidate.path} is a network of {FAMILIES[own].title}, but --base is {base.family.title}: "
            "give the --base that it was trained on."
        )


def paths_by_shot(store: Store) -> Mapping[tuple[str, Shot], Path]:
    """Map (candidate's name, shot) to the image's file."""
    return {
        (candidate.name, shot): store.path(candidate, shot)
        for candidate in store.settings.candidates
        for shot in store.settings.shots()
    }
