"""`python host_forward.py FAMILY CHECKPOINT TOKENIZERS OUT`, in the host's folder: what its own models and networks give.

Each of the host's network modules saves a file `OUT/<case>.safetensors` with random weights, and stays in the model while the
denoiser and the text encoders see fixed inputs. `OUT/results.safetensors` holds inputs and outputs by `<what>/<case>`; the case
`base` is without a network. Captions are encoded by the host's own strategies: `<encoder>/<max_token_length>`.
"""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CASES: dict[str, dict[str, tuple[str, float, dict[str, str]]]] = {
    "sd": {
        "lora": ("lora", 2, {"conv_dim": "2", "conv_alpha": "1"}),
        "lora_fa": ("lora_fa", 2, {"conv_dim": "2", "conv_alpha": "1"}),
        "dylora": ("dylora", 2, {"conv_dim": "4", "unit": "2"}),
        "oft": ("oft", 0.05, {"enable_all_linear": "True", "enable_conv": "True"}),
        "oft_loose": ("oft", 1e-3, {}),
    },
    "sdxl": {
        "lora": ("lora", 2, {"conv_dim": "2", "conv_alpha": "1"}),
        "loha": ("loha", 2, {"conv_dim": "2", "conv_alpha": "1"}),
        "loha_tucker": ("loha", 2, {"conv_dim": "2", "use_tucker": "true"}),
        "lokr": ("lokr", 2, {"conv_dim": "2", "factor": "4"}),
        "lokr_tucker": ("lokr", 2, {"conv_dim": "2", "use_tucker": "true", "factor": "2"}),
        "lokr_full": ("lokr", 2, {"conv_dim": "1000", "factor": "4"}),
        "oft": ("oft", 0.05, {"enable_all_linear": "True", "enable_conv": "True"}),
    },
    "sd3": {"lora_sd3": ("lora_sd3", 2, {})},
    "flux": {
        "lora_flux": ("lora_flux", 2, {}),
        "oft_flux": ("oft_flux", 0.05, {"enable_all_linear": "True"}),
    },
}
"""Family -> case -> module of `networks`, its alpha, its `--network_args`. The rank is 4."""

PREPOSITION = "a red square, with "
CAPTIONS = ["", "a red square", PREPOSITION * 7, PREPOSITION * 20]
"""None, some, more than 75 and more than 225 tokens of a tokenizer that knows letters only."""


class Model:
    """The host's models of one family, and a way to run them."""

    def __init__(self, denoiser: Any, encoders: list[Any], run: Callable[[Any, dict[str, Tensor]], Tensor]) -> None:
        self.denoiser, self.encoders, self.run = denoiser.float().eval(), encoders, run

    @torch.no_grad()
    def outputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {"denoiser": self.run(self.denoiser, inputs)}
        for number, encoder in enumerate(self.encoders):
            found[f"text_encoder{number}"] = encoder(inputs["tokens"]).last_hidden_state
        return found


def inputs_of(family: str, generator: torch.Generator) -> dict[str, Tensor]:
    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    channels, width, pooled = {"sd": (4, 32, 0), "sdxl": (4, 96, 1600), "sd3": (16, 0, 0), "flux": (16, 32, 32)}[family]
    found = {"tokens": torch.randint(0, 500, (2, 77), generator=generator), "time": torch.tensor([300.0, 300.0])}
    found["latents"] = noise(2, 16, 64) if family == "flux" else noise(2, channels, 8, 8)
    return found | {"context": noise(2, 7, width), "pooled": noise(2, pooled)}


def load_sd(checkpoint: Path) -> Model:
    io = import_module("library.model_io")
    args = Namespace(pretrained_model_name_or_path=str(checkpoint), v2=False, vae=None)
    encoder, _, unet, _ = io._load_target_model(args, torch.float32)

    def run(unet: Any, given: dict[str, Tensor]) -> Tensor:
        return unet(given["latents"], given["time"], given["context"]).sample

    return Model(unet, [encoder], run)


def load_sdxl(checkpoint: Path) -> Model:
    util = import_module("library.sdxl_train_util")
    _, one, two, _, unet, *_ = util._load_target_model(str(checkpoint), None, "sdxl", torch.float32, model_dtype=torch.float32)

    def run(unet: Any, given: dict[str, Tensor]) -> Tensor:
        return unet(given["latents"], given["time"], given["context"], given["pooled"])

    return Model(unet, [one, two], run)


def load_sd3(checkpoint: Path) -> Model:
    mmdit = import_module("library.sd3_utils").load_mmdit(load_file(checkpoint), torch.float32, "cpu")

    def run(mmdit: Any, given: dict[str, Tensor]) -> Tensor:
        return mmdit(given["latents"], given["time"], given["pooled"], given["context"])

    return Model(mmdit, [], run)


def load_flux(checkpoint: Path) -> Model:
    flux = import_module("library.flux_utils").load_flow_model(str(checkpoint), torch.float32, "cpu")[1]

    def run(flux: Any, given: dict[str, Tensor]) -> Tensor:
        ids = torch.zeros(2, 16, 3), torch.zeros(2, 7, 3)
        guidance = torch.full((2,), 3.5)
        latents, context, time, pooled = (given[name] for name in ("latents", "context", "time", "pooled"))
        return flux(latents, ids[0], context, ids[1], time / 1000, pooled, guidance=guidance)

    return Model(flux, [], run)


LOADERS = {"sd": load_sd, "sdxl": load_sdxl, "sd3": load_sd3, "flux": load_flux}


def network_of(model: Model, module: str, alpha: float, options: dict[str, str]) -> Any:
    """A network of the host with random weights."""
    made = import_module(f"networks.{module}")
    if module == "oft_flux":  # whose rows of fused layers are literals for the width of 3072
        network = made.OFTNetwork(
            [], model.denoiser, dim=4, alpha=alpha, enable_all_linear=True, module_class=narrow(made.OFTModule)
        )
    else:
        encoders = model.encoders if len(model.encoders) > 1 or module.endswith(("flux", "sd3")) else model.encoders[0]
        network = made.create_network(1.0, 4, alpha, None, encoders, model.denoiser, **options)
    network.apply_to(model.encoders, model.denoiser, bool(model.encoders), True)
    generator = torch.Generator().manual_seed(0)
    scale = 0.02 if "oft" in module else 0.3
    for parameter in network.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def narrow(module: type) -> type:
    """The host's OFT for a FLUX of another width."""

    class Narrow(module):  # type: ignore[misc, valid-type]
        def __init__(self, name: str, layer: Any, multiplier: float, dim: int, alpha: float, rows: list[int] | None) -> None:
            scaled = rows and [part * layer.out_features // sum(rows) for part in rows]
            super().__init__(name, layer, multiplier, dim, alpha, scaled)

    return Narrow


def encodings(family: str, model: Model, tokenizers: Path) -> Iterator[tuple[str, Tensor]]:
    """What the host makes of the captions with each `--max_token_length`, and each `--clip_skip` where it has one."""
    for length in (None, 150, 225):
        if family == "sd":
            strategies = import_module("library.strategy_sd")
            tokenize = strategies.SdTokenizeStrategy(False, length, str(tokenizers))
            for skip in (None, 2):
                encode = strategies.SdTextEncodingStrategy(skip)
                yield f"sd/{length}/{skip}", encode.encode_tokens(tokenize, model.encoders, tokenize.tokenize(CAPTIONS))[0]
        else:
            strategies = import_module("library.strategy_sdxl")
            tokenize, encode = strategies.SdxlTokenizeStrategy(length, str(tokenizers)), strategies.SdxlTextEncodingStrategy()
            one, two, pooled = encode.encode_tokens(tokenize, model.encoders, tokenize.tokenize(CAPTIONS))
            yield f"sdxl/{length}", torch.cat([one, two], dim=-1)
            yield f"pooled/{length}", pooled


def main(family: str, checkpoint: Path, tokenizers: Path, out: Path) -> None:
    random.randint = lambda low, high: high  # DyLoRA draws a rank in every call: the whole one, as it is saved
    inputs = inputs_of(family, torch.Generator().manual_seed(1))
    model = LOADERS[family](checkpoint)
    if family == "sd3":
        inputs |= {"context": torch.randn(2, 7, model.denoiser.context_embedder.in_features)}
        inputs |= {"pooled": torch.randn(2, model.denoiser.y_embedder.mlp[0].in_features)}
    results = {f"inputs/{name}": tensor for name, tensor in inputs.items()}
    results |= {f"{name}/base": tensor for name, tensor in model.outputs(inputs).items()}
    if family in ("sd", "sdxl"):
        with torch.no_grad():
            results |= dict(encodings(family, model, tokenizers))
    for case, (module, alpha, options) in CASES[family].items():
        model = LOADERS[family](checkpoint)  # what a network has replaced is not put back by the host
        network = network_of(model, module, alpha, options)
        network.save_weights(str(out / f"{case}.safetensors"), None, {})
        results |= {f"{name}/{case}": tensor for name, tensor in model.outputs(inputs).items()}
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, out / "results.safetensors")


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main(sys.argv[1], *map(Path, sys.argv[2:]))
