"""Images as vectors: the class token of a frozen DINOv2, kept under the content of the image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adt_plugin.compare.memory import memory_for
from adt_plugin.core.builds import check_torchvision
from adt_plugin.core.discriminator.loaders import plain_processor
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.hub import download_command
from adt_plugin.core.run.files import write_atomically

BATCH = 16
NO_ROOM = "close what else is on the device, or give another by --device"


class Embedder:
    """DINOv2 of transformers, from the hub's cache or a local folder.

    An image is resized and cropped as the network was published with; its vector is the class token of the last block, as
    PEFT's image-generation benchmark takes it.

    Args:
        name: hub name or folder.
        device: where it runs.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def __init__(self, name: str, device: str) -> None:
        check_torchvision()
        import transformers

        auto: Any = transformers  # partly untyped
        try:
            self.processor = auto.AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **plain_processor())
            model = auto.AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_loaded(name) from error
        with memory_for("the backbone of the figures", NO_ROOM):
            self.model, self.device = getattr(model, "vision_model", model).to(device).eval(), device
        self.digest = _weights_digest(self.model)

    @torch.inference_mode()
    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return `(N, D)` float32 on the CPU for image files.

        Raises:
            ConfigError: an image cannot be read.
        """
        from PIL import Image, ImageOps

        images = []
        for path in paths:
            try:
                with Image.open(path) as image:
                    images.append(ImageOps.exif_transpose(image).convert("RGB"))
            except OSError as error:
                raise ConfigError(f"{path} cannot be read as an image ({error}): remove it or replace it.") from error
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return self.model(pixel_values=pixels.to(self.device)).last_hidden_state[:, 0].float().cpu()


def _not_loaded(name: str) -> ConfigError:
    """Return the error for a network that cannot be loaded: what is wrong depends on whether a folder was meant."""
    if Path(name).is_dir():
        return ConfigError(
            f"--backbone: the folder {name} holds no vision model of transformers: it needs config.json, "
            "preprocessor_config.json and model.safetensors."
        )
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1:
        return ConfigError(f"--backbone: there is no folder {name}: give one, or a name such as facebook/dinov2-base.")
    return ConfigError(
        f"--backbone: {name} is not in the Hugging Face cache and could not be fetched: run `{download_command(name)}` "
        "once with network access, or give a local folder."
    )


def _weights_digest(model: Any) -> str:
    """Return 16 hexadecimal digits of a network's weights."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """Vectors of images on disk, by the content of the image and the network's weights.

    Args:
        embedder: the network.
        folder: where the file lies.
    """

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self.embedder, self.path = embedder, folder / f"features-{embedder.digest}.safetensors"
        self.vectors: dict[str, Tensor] = self._read()

    def _read(self) -> dict[str, Tensor]:
        from safetensors import SafetensorError  # type: ignore[attr-defined]
        from safetensors.torch import load_file

        try:
            return dict(load_file(self.path))
        except (OSError, SafetensorError):
            return {}  # not there yet, or not ours: it is made again

    def of(self, paths: Sequence[Path], advance: Callable[[int], None] = lambda count: None) -> Tensor:
        """Return `(N, D)` float32 for image files; those that were never seen are embedded and kept.

        Args:
            paths: of the images.
            advance: called with the number of images that are done.

        Raises:
            ConfigError: an image cannot be read, or the device's memory does not suffice.
        """
        keys = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        new = {key: path for key, path in zip(keys, paths, strict=True) if key not in self.vectors}
        advance(len(keys) - len(new))
        batches = [list(new)[start : start + BATCH] for start in range(0, len(new), BATCH)]
        for batch in batches:
            self.vectors |= dict(zip(batch, self._embedded([new[key] for key in batch]), strict=True))
            advance(len(batch))
        if new:
            self._write()
        return torch.stack([self.vectors[key] for key in keys])

    def _embedded(self, paths: list[Path]) -> Tensor:
        with memory_for("the figures", NO_ROOM):
            return self.embedder(paths)

    def _write(self) -> None:
        from safetensors.torch import save

        write_atomically(self.path, save({key: vector.clone() for key, vector in self.vectors.items()}))
