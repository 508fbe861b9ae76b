"""What differs between the host's model families, as one table. No other module asks which family it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adt_plugin.host.seams import Seam


@dataclass(frozen=True)
class Family:
    """A model family of the host.

    Attributes:
        name: as users call it.
        scripts: the host's trainers of this family that the plugin serves.
        denoisers: class names of the denoiser.
        noising: the seam that sees the clean latents; they are its first tensor argument.
        models: the seam that loads the VAE, at position `vae_index` of its result.
        latent_scale, latent_shift: the denoiser's latents are `(z - shift) * scale` of the VAE's z.
        prediction_type: of the denoiser's raw output, from the host's arguments.
        read_output: the prediction `(B, C, h, w)` in what the denoiser returns.
    """

    name: str
    scripts: tuple[str, ...]
    denoisers: tuple[str, ...]
    noising: Seam
    models: Seam
    vae_index: int
    latent_scale: float
    latent_shift: float
    prediction_type: Callable[[argparse.Namespace], str]
    read_output: Callable[[Any], Tensor]


SD_NOISING = Seam(
    "get_noise_noisy_latents_and_timesteps",
    ("library.loss", "library.train_util"),
    ("args", "noise_scheduler", "latents"),
    "the clean latents and the noise schedule of each batch",
)

SD = Family(
    name="Stable Diffusion 1.x/2.x",
    scripts=("train_network.py",),
    denoisers=("UNet2DConditionModel",),
    noising=SD_NOISING,
    models=Seam(
        "load_target_model", ("library.model_io", "library.train_util"), ("args", "weight_dtype", "accelerator"), "the VAE"
    ),
    vae_index=1,
    latent_scale=0.18215,
    latent_shift=0.0,
    prediction_type=lambda args: "v_prediction" if args.v_parameterization else "epsilon",
    read_output=lambda output: output.sample,
)

FAMILIES = (SD,)

ACCELERATOR = Seam("prepare_accelerator", ("library.accelerator_setup", "library.train_util"), ("args",), "the accelerator")
METADATA = Seam(
    "get_sai_model_spec", ("library.model_io", "library.train_util"), ("state_dict", "args"), "the metadata of saved files"
)
