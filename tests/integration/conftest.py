"""Fixtures of the tests that meet sd-scripts, real or make-believe."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def adt_options(tiny_dino: Path) -> tuple[str | Path, ...]:
    """`--adt` at the tiny models' size: a picture every second turn, one turn of warm-up."""
    return (
        "--adt",
        "--adt_backbone",
        tiny_dino,
        "--adt_image_size",
        "56",
        "--adt_steps",
        "4",
        "--adt_warmup",
        "1",
        "--adt_pictures_every",
        "2",
    )
