"""What one comparison is: candidates, prompts, seeds and sampling, and the request of every single image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adt_plugin.compare.families import metadata_of
from adt_plugin.compare.models import Parts

SCORED, NEUTRAL = "scored", "neutral"

RENDERING = 2
"""Of how images are made; another number where those of an older one are to be made again."""

CHUNK = 75
"""Tokens that CLIP reads at once, without those of start and end."""


@dataclass(frozen=True)
class Prompt:
    """What an image is asked for.

    Attributes:
        text: of the prompt.
        negative: what is to be avoided.
        purpose: `SCORED`, or `NEUTRAL` for prompts that have nothing to do with the training images.
    """

    text: str
    negative: str = ""
    purpose: str = SCORED


@dataclass(frozen=True)
class Sampling:
    """How an image is sampled: number of steps, and the scale of classifier-free guidance."""

    steps: int
    cfg: float

    def __str__(self) -> str:
        return f"{self.steps} steps, guidance {self.cfg:g}"


@dataclass(frozen=True)
class Shot:
    """One image of every candidate."""

    prompt: Prompt
    seed: int
    sampling: Sampling


@dataclass(frozen=True)
class Candidate:
    """A column of the comparison.

    Attributes:
        name: as given before `=`.
        kind: `base`, `lora` or `checkpoint`.
        path: of the file or folder.
    """

    name: str
    kind: str
    path: Path

    @property
    def flag(self) -> str:
        """How the user named it, for messages."""
        return "--base" if self.kind == "base" else f"--{self.kind} {self.name}"


def trained_lengths(candidates: Iterable[Candidate]) -> dict[str, int]:
    """Map the networks whose files say it to the tokens of a caption that they were trained with."""
    lengths = {}
    for candidate in candidates:
        metadata = metadata_of(candidate.path) if candidate.kind == "lora" else {}
        if "ss_max_token_length" in metadata:
            said = metadata["ss_max_token_length"]
            chunks = int(said) // CHUNK if said.isdecimal() else 1  # "None" is sd-scripts' default
            lengths[candidate.name] = CHUNK * max(1, chunks)
    return lengths


@dataclass(frozen=True)
class Settings:
    """All that one comparison depends on. See the command's help."""

    candidates: tuple[Candidate, ...]
    prompts: tuple[Prompt, ...]
    samplings: tuple[Sampling, ...]
    seeds: tuple[int, ...]
    size: tuple[int, int]
    sampler: str
    reference: Path
    out: Path
    backbone: str
    device: str
    dtype: str
    parts: Parts = field(default_factory=Parts)
    network_mul: float = 1.0
    clip_skip: int = 1
    max_token_length: int = CHUNK
    batch_size: int = 1
    offload: bool = False

    def shots(self) -> list[Shot]:
        """Return the images of one candidate: every prompt, seed and sampling; neutral prompts with two seeds, sampled once."""
        return [*self._scored(), *self._neutral()]

    def _scored(self) -> Iterator[Shot]:
        prompts = [prompt for prompt in self.prompts if prompt.purpose == SCORED]
        for sampling in self.samplings:
            yield from (Shot(prompt, seed, sampling) for prompt in prompts for seed in self.seeds)

    def _neutral(self) -> Iterator[Shot]:
        prompts = [prompt for prompt in self.prompts if prompt.purpose == NEUTRAL]
        yield from (Shot(prompt, seed, self.samplings[0]) for prompt in prompts for seed in self.seeds[:2])

    def request(self, candidate: Candidate, digests: dict[Path, str], shot: Shot) -> str:
        """Return the digest of all that decides one image's pixels, 32 hexadecimal digits.

        Args:
            candidate: whose image.
            digests: content of every file that takes part.
            shot: which image.
        """
        import diffusers

        base = self.candidates[0]
        model = candidate if candidate.kind == "checkpoint" else base
        parts = self.parts.files()
        content: dict[str, Any] = {
            "diffusers": diffusers.__version__,
            "rendering": RENDERING,
            "model": digests[model.path],
            "network": [digests[candidate.path], self.network_mul] if candidate.kind == "lora" else None,
            "parts": [digests[path] for path in parts],
            "v": self.parts.v_parameterization,
            "sampler": self.sampler,
            "clip_skip": self.clip_skip,
            "max_token_length": self.max_token_length,
            "device": self.device.partition(":")[0],
            "dtype": self.dtype,
            "size": self.size,
            "seed": shot.seed,
            "sampling": asdict(shot.sampling),
            "prompt": [shot.prompt.text, shot.prompt.negative],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their names."""
    digest = hashlib.sha256()
    files = sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
