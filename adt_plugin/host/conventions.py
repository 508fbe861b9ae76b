"""How the host calls its denoisers, and what their outputs mean: thin wrappers, one per model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Place = int | str
"""Position or keyword of an argument."""

Arguments = dict[Place, Any]
"""All arguments of a call by their places."""


def same(x: Tensor) -> Tensor:
    """Return the tensor itself."""
    return x


def only_tensor(output: Any) -> Tensor:
    """Return a denoiser's tensor, which comes bare or as diffusers' `.sample`."""
    return getattr(output, "sample", output)


def without_frames(latents: Tensor) -> Tensor:
    """Return latents `(B, C, h, w)`, also of those `(B, C, 1, h, w)` that a trainer on a video model hands over."""
    return latents.squeeze(2) if latents.ndim == 5 else latents


def same_prediction(output: Tensor, latents: Tensor) -> Tensor:
    """Return the output itself, which is the prediction."""
    return output


def nothing(encoded: Sequence[Any], arguments: Arguments) -> Arguments:
    """Return no argument: none depends on the prompt."""
    return {}


def no_places(arguments: Arguments, latents: Tensor) -> Arguments:
    """Return no argument: none says where in the image a token lies."""
    return {}


@dataclass(frozen=True)
class Convention:
    """One denoiser's calling convention.

    Attributes:
        latents, timestep: where the host hands over x_t and t.
        pack: latents `(B, C, h, w)` -> the tensor that the host hands over.
        unpack: (output, latents) -> prediction `(B, C, h, w)`, in the scheduler's convention.
        time: the scheduler's timesteps `(B,)` -> the host's.
        time_as_given: the denoiser takes the precision of its own embedding from that of t: it has to be the host's.
        conditioning: (encoded prompt, the captured arguments) -> the arguments that depend on the prompt.
        fixed: arguments that are the same in every repeated call.
        places: (arguments, latents of another size) -> the arguments that say where in the image each token lies.
    """

    latents: Place = 0
    timestep: Place = 1
    pack: Callable[[Tensor], Tensor] = same
    unpack: Callable[[Tensor, Tensor], Tensor] = same_prediction
    time: Callable[[Tensor], Tensor] = same
    time_as_given: bool = False
    conditioning: Callable[[Sequence[Any], Arguments], Arguments] = nothing
    fixed: Mapping[Place, Any] = field(default_factory=dict)
    places: Callable[[Arguments, Tensor], Arguments] = no_places


# Stable Diffusion 1.x, 2.x, XL: unet(x, t, context[, vector]) -> noise or v


def sd_conditioning(encoded: Sequence[Any], arguments: Arguments) -> Arguments:
    """Return the text encoder's hidden states."""
    return {2: encoded[0]}


def sdxl_conditioning(encoded: Sequence[Any], arguments: Arguments) -> Arguments:
    """Return both hidden states side by side; the pooled one before the sizes and crops that are already there."""
    first, second, pooled = encoded
    sizes = arguments[3][:, pooled.shape[1] :]
    return {
        2: torch.cat([first, second], dim=2),
        3: torch.cat([pooled.to(sizes).expand(len(sizes), -1), sizes], dim=1),
    }


SD = Convention(conditioning=sd_conditioning)
SDXL = Convention(conditioning=sdxl_conditioning)


# Flow models; the scheduler's velocity is eps - x_0 and its time sigma * 1000


def sd3_conditioning(encoded: Sequence[Any], arguments: Arguments) -> Arguments:
    """Return CLIP's hidden states, padded to T5's width, before T5's, as the host concatenates them."""
    clip, t5, pooled = encoded[:3]
    context = arguments["context"]
    clip = F.pad(clip, (0, context.shape[-1] - clip.shape[-1])).to(context)
    if t5 is None:
        t5 = clip.new_zeros(1, context.shape[1] - clip.shape[1], context.shape[2])
    return {"context": torch.cat([clip, t5.to(context)], dim=1), "y": pooled}


SD3 = Convention(conditioning=sd3_conditioning)


def pack_patches(latents: Tensor) -> Tensor:
    """Pack `(B, C, h, w)` into `(B, h/2 * w/2, 4 C)`: tokens of 2x2 latent pixels, channels first (FLUX)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack_patches(output: Tensor, latents: Tensor) -> Tensor:
    """Invert `pack_patches`, to the shape of the latents."""
    batch, channels, height, width = latents.shape
    patches = output.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(latents.shape)


def flux_conditioning(encoded: Sequence[Any], arguments: Arguments) -> Arguments:
    """Return pooled CLIP, T5 with its position ids, and T5's mask where the run hands one over."""
    given = dict(zip(("y", "txt", "txt_ids", "txt_attention_mask"), encoded, strict=False))
    return {name: value for name, value in given.items() if arguments.get(name) is not None}


def flux_places(arguments: Arguments, latents: Tensor) -> Arguments:
    """Return the row and column of every patch, `(B, h/2 * w/2, 3)`, as the host prepares them."""
    height, width = (length // 2 for length in latents.shape[-2:])
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(float(height)), torch.arange(float(width)))
    return {"img_ids": grid.to(arguments["img_ids"]).expand(len(latents), -1, -1)}


FLUX = Convention(
    latents="img",
    timestep="timesteps",
    pack=pack_patches,
    unpack=unpack_patches,
    time=lambda t: t / 1000,
    conditioning=flux_conditioning,
    fixed={"mod_vectors": None},  # Chroma's depend on t: without them it computes them itself
    places=flux_places,
)


def lumina_conditioning(encoded: Sequence[Any], arguments: Arguments) -> Arguments:
    """Return Gemma's hidden states and mask."""
    return {"cap_feats": encoded[0], "cap_mask": encoded[2]}


LUMINA = Convention(
    latents="x",
    timestep="t",
    unpack=lambda output, latents: -output,  # its velocity points from noise to image
    time=lambda t: 1 - t / 1000,
    conditioning=lumina_conditioning,
)


def anima_conditioning(encoded: Sequence[Any], arguments: Arguments) -> Arguments:
    """Return Qwen's hidden states and mask, T5's ids and mask; LoRA and full fine-tuning hand them over by different names."""
    embeds, mask, t5_ids, t5_mask = encoded
    names = {
        "target_input_ids": t5_ids,
        "target_attention_mask": t5_mask,
        "source_attention_mask": mask,
        "t5_input_ids": t5_ids,
        "t5_attn_mask": t5_mask,
    }
    return {2: embeds} | {name: value for name, value in names.items() if name in arguments}


ANIMA = Convention(
    pack=lambda latents: latents.unsqueeze(2),
    unpack=lambda output, latents: output.squeeze(2),
    time=lambda t: t / 1000,
    time_as_given=True,
    conditioning=anima_conditioning,
)


def hunyuan_conditioning(encoded: Sequence[Any], arguments: Arguments) -> Arguments:
    """Return hidden states and masks of the vision-language model and of byT5."""
    return dict(zip((2, 3, 4, 5), encoded, strict=False))


HUNYUAN = Convention(time=lambda t: t.long(), conditioning=hunyuan_conditioning)
