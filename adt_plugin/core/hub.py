"""The command that fetches a model beforehand, as the installed huggingface_hub calls it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

NAMED_HF = (0, 34)
"""The first version whose command is `hf`; from 1.0 on `huggingface-cli` is gone."""


def download_command(name: str) -> str:
    """Return what brings a model of the hub into the cache."""
    try:
        major, minor = version("huggingface_hub").split(".")[:2]
        newer = (int(major), int(minor)) >= NAMED_HF
    except (PackageNotFoundError, ValueError):
        newer = True
    return f"{'hf' if newer else 'huggingface-cli'} download {name}"
