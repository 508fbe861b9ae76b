"""DINOv2's class tokens: what PEFT's benchmark takes, made once for each content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from adt_plugin.compare.features import Embedder, FeatureCache
from adt_plugin.compare.inputs import read_references
from adt_plugin.core.discriminator.loaders import plain_processor
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.hub import download_command


@pytest.fixture(scope="module")
def embedder(tiny_dino: Path) -> Embedder:
    return Embedder(str(tiny_dino), "cpu")


@pytest.fixture
def paths(tiny_images: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(image.path, tmp_path)) for image in read_references(tiny_images)]


def test_the_vector_is_the_class_token_of_the_published_preprocessing(
    embedder: Embedder, paths: list[Path], tiny_dino: Path
) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(tiny_dino, **plain_processor())
    model = transformers.AutoModel.from_pretrained(tiny_dino)
    with torch.no_grad():
        theirs = model(**processor(images=Image.open(paths[0]), return_tensors="pt")).pooler_output
    assert torch.allclose(embedder(paths[:1]), theirs, atol=1e-5)


class Counting(Embedder):
    """An embedder that counts."""

    def __init__(self, embedder: Embedder) -> None:
        self.__dict__.update(embedder.__dict__)
        self.seen = 0

    def __call__(self, paths: list[Path]) -> torch.Tensor:
        self.seen += len(paths)
        return super().__call__(paths)


def test_an_image_is_embedded_once_whatever_it_is_called(embedder: Embedder, paths: list[Path], tmp_path: Path) -> None:
    counting = Counting(embedder)
    moved: list[int] = []
    first = FeatureCache(counting, tmp_path / "out").of([*paths, paths[0]], moved.append)
    assert counting.seen == 4 and sum(moved) == 5
    renamed = paths[0].rename(tmp_path / "renamed.png")
    again = FeatureCache(counting, tmp_path / "out").of([renamed, *paths[1:]])
    assert counting.seen == 4
    assert torch.equal(first[:4], again) and torch.equal(first[4], first[0])


def test_a_changed_image_is_embedded_again(embedder: Embedder, paths: list[Path], tmp_path: Path) -> None:
    counting = Counting(embedder)
    before = FeatureCache(counting, tmp_path / "out").of(paths)
    Image.new("RGB", (64, 64), "white").save(paths[2])
    after = FeatureCache(counting, tmp_path / "out").of(paths)
    assert counting.seen == 5
    assert [bool(torch.equal(a, b)) for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_damaged_file_of_vectors_is_made_again(embedder: Embedder, paths: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(embedder, tmp_path / "out")
    before = cache.of(paths)
    cache.path.write_bytes(b"half")
    assert torch.equal(FeatureCache(embedder, tmp_path / "out").of(paths), before)


def test_an_image_that_cannot_be_read_is_named(embedder: Embedder, paths: list[Path], tmp_path: Path) -> None:
    paths[1].write_bytes(b"no image")
    with pytest.raises(ConfigError, match=f"{paths[1].name} cannot be read as an image"):
        FeatureCache(embedder, tmp_path / "out").of(paths)


def test_a_backbone_that_is_not_there_says_the_one_thing_that_is_wrong(tmp_path: Path) -> None:
    sentences = {
        str(tmp_path): "^--backbone: the folder .* holds no vision model",
        str(tmp_path / "none"): "^--backbone: there is no folder",
        "facebook/dinov2-of-no-size": f"^--backbone: facebook/dinov2-of-no-size is not in .* `{download_command('facebook')}",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ConfigError, match=sentence):
            Embedder(name, "cpu")
