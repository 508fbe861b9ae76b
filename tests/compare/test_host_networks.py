"""Networks that the real sd-scripts has saved find every one of their layers."""

from __future__ import annotations

from typing import Any

import pytest

from adt_plugin.compare.networks import DENOISERS, by_layer, merged, read_network
from tinyhost.run import TinyRun

SAVED = {
    "SD, with the text encoder and convolutions": ("sd", "train_network.py", ("--network_args", "conv_dim=2")),
    "SDXL, with both text encoders and convolutions": ("sdxl", "sdxl_train_network.py", ("--network_args", "conv_dim=2")),
    "SD3": ("sd3", "sd3_train_network.py", ()),
    "FLUX": ("flux", "flux_train_network.py", ()),
    "OFT on SD": (
        "sd",
        "train_network.py",
        ("--network_module", "networks.oft", "--network_alpha", "1e-3", "--network_train_unet_only"),
    ),
    "LoHa on SDXL": ("sdxl", "sdxl_train_network.py", ("--network_module", "networks.loha")),
    "LyCORIS on FLUX": (
        "flux",
        "flux_train_network.py",
        ("--network_module", "lycoris.kohya", "--network_args", "algo=lokr", "factor=4"),
    ),
}


ALWAYS = ("SDXL, with both text encoders and convolutions", "LyCORIS on FLUX")
"""The two whose names are farthest from diffusers'; each case is a run of the host."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in ALWAYS else pytest.mark.slow) for case in SAVED])
def test_every_layer_of_a_saved_network_has_its_place(run_tiny: TinyRun, loaded: Any, case: str) -> None:
    family, script, options = SAVED[case]
    run = run_tiny("--max_train_steps", "1", *options, script=script).check()
    path = run.output_dir / "tiny.safetensors"
    layers = by_layer(read_network("--lora trained", path))
    assert any(name.startswith(DENOISERS) for name in layers)
    with merged(loaded(family), family, "--lora trained", path) as count:
        assert count == len(layers) > 8
