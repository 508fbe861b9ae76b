"""Whatever LyCORIS trains is merged as it was trained: a merged layer's output is that of LyCORIS' own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lycoris.modules as lycoris
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adt_plugin.compare.networks import merged
from adt_plugin.core.errors import ConfigError
from tinyhost.models import seeded

RANK = {"lora_dim": 4, "alpha": 2.0}
SMALL = {"lora_dim": 2, "alpha": 1.0}

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LoCon": (lycoris.LoConModule, RANK),
    "LoCon with a Tucker core": (lycoris.LoConModule, RANK | {"use_tucker": True}),
    "DoRA": (lycoris.LoConModule, RANK | {"weight_decompose": True}),
    "DoRA of columns": (lycoris.LoConModule, RANK | {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": (lycoris.LohaModule, RANK),
    "LoHa with a Tucker core": (lycoris.LohaModule, RANK | {"use_tucker": True}),
    "LoHa with DoRA": (lycoris.LohaModule, RANK | {"weight_decompose": True}),
    "LoKr": (lycoris.LokrModule, SMALL),
    "LoKr of two low ranks": (lycoris.LokrModule, {"lora_dim": 1, "alpha": 0.5, "decompose_both": True, "factor": 8}),
    "LoKr with a Tucker core": (lycoris.LokrModule, SMALL | {"use_tucker": True}),
    "LoKr with DoRA": (lycoris.LokrModule, SMALL | {"weight_decompose": True}),
    "LoKr, whole": (lycoris.LokrModule, SMALL | {"full_matrix": True}),
    "LoKr, the other way round": (lycoris.LokrModule, SMALL | {"unbalanced_factorization": True}),
    "full": (lycoris.FullModule, {}),
    "GLoRA": (lycoris.GLoRAModule, RANK),
    "diag-oft": (lycoris.DiagOFTModule, {"lora_dim": 4}),
    "diag-oft, short": (lycoris.DiagOFTModule, {"lora_dim": 4, "constraint": 0.01}),
    "diag-oft, rescaled": (lycoris.DiagOFTModule, {"lora_dim": 4, "rescaled": True}),
    "boft": (lycoris.ButterflyOFTModule, {"lora_dim": 4}),
    "boft, short": (lycoris.ButterflyOFTModule, {"lora_dim": 4, "constraint": 0.01}),
    "boft, rescaled": (lycoris.ButterflyOFTModule, {"lora_dim": 4, "rescaled": True}),
}
LAYERS = {"linear": "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "convolution": "mid_block.resnets.0.conv1"}


def random_module(kind: str, layer: nn.Module, multiplier: float) -> Any:
    """A module of LyCORIS with random weights for a layer."""
    build, options = KINDS[kind]
    module = build("lora_unet_a", layer, multiplier, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return module.eval()


@torch.no_grad()
def output_of(module: Any, layer: nn.Module, given: Tensor) -> Tensor:
    """What the layer gives while LyCORIS' module stands before it."""
    module.apply_to()
    try:
        return layer(given)
    finally:
        module.restore()


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
@pytest.mark.parametrize("place", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_layer_is_the_trained_one(loaded: Any, tmp_path: Path, kind: str, place: str, multiplier: float) -> None:
    layer = loaded("sd").unet.get_submodule(LAYERS[place])
    name = f"lora_unet_{LAYERS[place].replace('.', '_')}"
    with seeded(0):
        module = random_module(kind, layer, multiplier)
        given = torch.randn(2, layer.weight.shape[1], *([6, 6] if place == "convolution" else []))
    theirs = output_of(module, layer, given)
    tensors = module.custom_state_dict() or module.state_dict()
    save_file({f"{name}.{key}": tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "n.safetensors")
    with torch.no_grad(), merged(loaded("sd"), "sd", "--lora a", tmp_path / "n.safetensors", multiplier):
        ours = layer(given)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (theirs - layer(given)).abs().max() > 1e-3


def test_what_lycoris_cannot_read_is_refused_in_one_sentence(loaded: Any, tmp_path: Path) -> None:
    """IA3: LyCORIS saves it and cannot load it."""
    layer = loaded("sd").unet.get_submodule(LAYERS["linear"])
    state = lycoris.IA3Module("lora_unet_a", layer).state_dict()
    name = f"lora_unet_{LAYERS['linear'].replace('.', '_')}"
    save_file({f"{name}.{key}": tensor for key, tensor in state.items()}, tmp_path / "n.safetensors")
    with (
        pytest.raises(ConfigError, match=r"^--lora a: .* cannot merge \(on_input, weight\): merge it into a --checkpoint"),
        merged(loaded("sd"), "sd", "--lora a", tmp_path / "n.safetensors"),
    ):
        pytest.fail("merged")
