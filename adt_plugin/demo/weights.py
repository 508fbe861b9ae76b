"""The trained networks that ship with the package: half precision, with their digests; made by `tests/benchmarks/beds/`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load, save
from torch import Tensor, nn

from adt_plugin.core.run.files import write_atomically

WEIGHTS = Path(__file__).with_name("weights")
DIGESTS = WEIGHTS / "sha256.json"

Network = TypeVar("Network", bound=nn.Module)


def load_weights(name: str, network: Network) -> Network:
    """Fill `network` with the shipped weights of that name; return it frozen, in evaluation mode and single precision.

    Raises:
        FileNotFoundError: no such weights ship.
        ValueError: the file is not the one that was shipped.
    """
    content = (WEIGHTS / f"{name}.safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != digests().get(name):
        raise ValueError(f"the miniature's {name}.safetensors is damaged: install adt_plugin again")
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in load(content).items()}
    )
    return network.requires_grad_(False).eval()


def filled(network: Network, values: dict[str, Tensor]) -> Network:
    """Return the network with the values that `halved` made of another's; frozen, in evaluation mode and single precision."""
    network.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in values.items()})
    return network.requires_grad_(False).eval()


def halved(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's state in half precision; whole numbers stay as they are."""
    state = network.state_dict()
    return {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in state.items()}


def write_weights(name: str, network: nn.Module) -> None:
    """Write a network's weights in half precision, and its digest."""
    content = save(halved(network))
    write_atomically(WEIGHTS / f"{name}.safetensors", content)
    write_atomically(DIGESTS, json.dumps(digests() | {name: hashlib.sha256(content).hexdigest()}, indent=1) + "\n")


def digests() -> dict[str, str]:
    """Return the SHA-256 of every shipped file, by name."""
    found: dict[str, str] = json.loads(DIGESTS.read_text(encoding="utf-8")) if DIGESTS.exists() else {}
    return found
