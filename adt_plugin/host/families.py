"""What differs between the host's model families, as one table. No other module asks which family it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adt_plugin.core.images.decoding import Blocks, LatentFormat, diffusers_blocks
from adt_plugin.host import conventions, vaes
from adt_plugin.host.conventions import Convention
from adt_plugin.host.schedules import DiscreteSchedule, FlowSchedule, Schedule, constant, flux_shift
from adt_plugin.host.seams import Seam


@dataclass(frozen=True)
class Family:
    """A model family of the host.

    Attributes:
        name: as users call it.
        scripts: the host's trainers of this family that the plugin serves.
        prefix: of the file names of a fork's own trainers.
        denoisers: class names of the denoiser.
        noising: seams that see the clean latents, and
        vae: seams that load the VAE: of each the first that the host has.
        vae_in: the VAE in what that seam returns.
        latent_channels: of the denoiser's latents.
        latent_format: how the denoiser's latents relate to the VAE's own.
        tiny_decoder: what `--adt_decoder taesd` stands for on the hub (github.com/madebyollin/taesd); None if there is none for
            the family's latents in diffusers' format.
        decoder_blocks: the parts of the VAE's decoder that are worth checkpointing.
        convention: how the denoiser is called and read.
        schedule: noise schedule and sampler of the unroll.
        counted: the model of `COUNTED` whose cost and guidance a run has, told from the host's arguments.
        heeds_timestep_range: whether the host's noising follows --min_timestep and --max_timestep.
    """

    name: str
    scripts: tuple[str, ...]
    prefix: str
    denoisers: tuple[str, ...]
    noising: tuple[Seam, ...]
    vae: tuple[Seam, ...]
    latent_channels: int
    latent_format: Callable[[Any], LatentFormat]
    convention: Convention
    schedule: Schedule
    counted: Callable[[Any], str]
    vae_in: Callable[[Any], Any] = lambda loaded: loaded
    tiny_decoder: str | None = None
    decoder_blocks: Blocks = diffusers_blocks
    heeds_timestep_range: bool = False


def always(model: str) -> Callable[[Any], str]:
    """Name one model of `COUNTED`, whatever the host's arguments."""
    return lambda args: model


def noising(function: str, modules: tuple[str, ...], parameters: tuple[str, ...]) -> Seam:
    """Return the seam of the host's function that noises a batch."""
    return Seam(function, modules, parameters, "the clean latents and the noise schedule of each batch")


def vae_loader(function: str, *modules: str) -> Seam:
    """Return the seam of a function of the host that loads the VAE."""
    return Seam(function, modules, (), "the VAE")


SD_NOISING = noising(
    "get_noise_noisy_latents_and_timesteps",
    ("library.loss", "library.train_util"),
    ("args", "noise_scheduler", "latents"),
)
FLUX_NOISING = noising(
    "get_noisy_model_input_and_timesteps", ("library.flux_train_utils",), ("args", "noise_scheduler", "latents")
)

SD = Family(
    name="Stable Diffusion 1.x/2.x",
    scripts=("train_network.py", "fine_tune.py", "train_db.py"),
    prefix="",
    denoisers=("UNet2DConditionModel",),
    noising=(SD_NOISING,),
    vae=(vae_loader("load_target_model", "library.model_io", "library.train_util"),),
    vae_in=lambda loaded: loaded[1],
    latent_channels=4,
    tiny_decoder="madebyollin/taesd",
    latent_format=lambda vae: LatentFormat(scale=0.18215),
    convention=conventions.SD,
    schedule=DiscreteSchedule(),
    counted=always("sd15"),
    heeds_timestep_range=True,
)

SDXL = Family(
    name="Stable Diffusion XL",
    scripts=("sdxl_train_network.py", "sdxl_train.py"),
    prefix="sdxl_",
    denoisers=("SdxlUNet2DConditionModel",),
    noising=(SD_NOISING,),
    vae=(vae_loader("load_target_model", "library.sdxl_train_util"),),
    vae_in=lambda loaded: loaded[3],
    latent_channels=4,
    tiny_decoder="madebyollin/taesdxl",
    latent_format=lambda vae: LatentFormat(scale=0.13025),
    convention=conventions.SDXL,
    schedule=DiscreteSchedule(),
    counted=always("sdxl"),
    heeds_timestep_range=True,
)

SD3 = Family(
    name="Stable Diffusion 3",
    scripts=("sd3_train_network.py", "sd3_train.py"),
    prefix="sd3_",
    denoisers=("MMDiT",),
    noising=(noising("get_noisy_model_input_and_timesteps", ("library.sd3_train_utils",), ("args", "latents")),),
    vae=(vae_loader("load_vae", "library.sd3_utils"),),
    latent_channels=16,
    tiny_decoder="madebyollin/taesd3",
    latent_format=lambda vae: LatentFormat(scale=1.5305, shift=0.0609),
    decoder_blocks=vaes.original_blocks,
    convention=conventions.SD3,
    schedule=FlowSchedule(constant(3.0), spacing="linspace"),
    counted=always("sd3"),
    heeds_timestep_range=True,
)

FLUX = Family(
    name="FLUX.1 and Chroma",
    scripts=("flux_train_network.py", "flux_train.py"),
    prefix="flux_",
    denoisers=("Flux", "Chroma"),
    noising=(FLUX_NOISING,),
    vae=(vae_loader("load_ae", "library.flux_utils"),),
    latent_channels=16,
    tiny_decoder="madebyollin/taef1",
    latent_format=vaes.autoencoder_format,
    decoder_blocks=vaes.original_blocks,
    convention=conventions.FLUX,
    schedule=FlowSchedule(flux_shift),
    counted=lambda args: "chroma" if getattr(args, "model_type", None) == "chroma" else "flux",
)

LUMINA = Family(
    name="Lumina Image 2.0",
    scripts=("lumina_train_network.py", "lumina_train.py"),
    prefix="lumina_",
    denoisers=("NextDiT",),
    noising=(
        noising("get_noisy_model_input_and_timesteps", ("library.lumina_train_util",), ("args", "noise_scheduler", "latents")),
    ),
    vae=(vae_loader("load_ae", "library.lumina_util"),),
    latent_channels=16,
    tiny_decoder="madebyollin/taef1",
    latent_format=vaes.autoencoder_format,
    decoder_blocks=vaes.original_blocks,
    convention=conventions.LUMINA,
    schedule=FlowSchedule(constant(6.0), spacing="linspace"),
    counted=always("lumina"),
)

ANIMA = Family(
    name="Anima",
    scripts=("anima_train_network.py", "anima_train.py"),
    prefix="anima_",
    denoisers=("Anima",),
    noising=(
        noising("build_noisy_latents", ("library.anima_runtime.flow_training",), ("latents", "t_values")),  # FHfanshu's fork
        FLUX_NOISING,
    ),
    vae=(
        vae_loader("load_qwen_image_vae", "library.anima_train_utils"),
        vae_loader("load_vae", "library.qwen_image_autoencoder_kl", "library.anima_runtime.model_loading"),
    ),
    vae_in=vaes.qwen_vae,
    latent_channels=16,
    latent_format=vaes.qwen_format,
    convention=conventions.ANIMA,
    schedule=FlowSchedule(constant(3.0)),
    counted=always("anima"),
)

HUNYUAN = Family(
    name="HunyuanImage-2.1",
    scripts=("hunyuan_image_train_network.py",),
    prefix="hunyuan_",
    denoisers=("HYImageDiffusionTransformer",),
    noising=(FLUX_NOISING,),
    vae=(vae_loader("load_vae", "library.hunyuan_image_vae"),),
    latent_channels=64,
    latent_format=lambda vae: LatentFormat(scale=vae.scaling_factor, pixels=vae.ffactor_spatial),
    decoder_blocks=vaes.original_blocks,
    convention=conventions.HUNYUAN,
    schedule=FlowSchedule(constant(5.0)),
    counted=always("hunyuan"),
)

FAMILIES = (SD, SDXL, SD3, FLUX, LUMINA, ANIMA, HUNYUAN)

ACCELERATOR = Seam("prepare_accelerator", ("library.accelerator_setup", "library.train_util"), ("args",), "the accelerator")
METADATA = Seam(
    "get_sai_model_spec", ("library.model_io", "library.train_util"), ("state_dict", "args"), "the metadata of saved files"
)
METADATA_OBJECT = Seam(
    "ModelSpecMetadata.to_metadata_dict", ("library.sai_model_spec",), ("self",), "the metadata of saved files, from v0.10 on"
)
MASKING = Seam("apply_masked_loss", ("library.custom_train_functions",), ("loss", "batch"), "the mask of each batch")
PROMPT_CACHING = Seam(
    "DatasetGroup.new_cache_text_encoder_outputs",
    ("library.dataset", "library.train_util"),
    ("self", "models"),
    "the text encoders before they are freed",
)
