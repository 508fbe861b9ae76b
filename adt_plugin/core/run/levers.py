"""What can be changed where memory runs out, in the order of docs/cost.md, 'When memory runs out'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from adt_plugin.core.turn import AdversarialTurn

SMALLEST_WINDOW = 128
"""Pixels: a smaller window shows a backbone of 224 pixels little but its own enlargement (ours)."""


@dataclass(frozen=True)
class Setting:
    """An option to set, as a user writes it, and what it is now."""

    wanted: str
    now: str

    def __str__(self) -> str:
        return f"{self.wanted} (now {self.now})"


@dataclass(frozen=True)
class Lever:
    """One way to need less memory.

    Attributes:
        stages: of a turn, in which it helps.
        setting: what to set for a turn on such latents `(B, C, h, w)`; None where there is nothing left to gain.
        pull: sets it for all further turns.
    """

    stages: tuple[str, ...]
    setting: Callable[[AdversarialTurn, Tensor], Setting | None]
    pull: Callable[[AdversarialTurn, Tensor], None]


def _no_graphs(turn: AdversarialTurn, latents: Tensor) -> Setting | None:
    return Setting("--adt_memory low", turn.config.memory) if turn.memory.keeps_graphs(latents) else None


def _keep_no_graphs(turn: AdversarialTurn, latents: Tensor) -> None:
    turn.memory.keep_none()


def smaller_window(turn: AdversarialTurn, latents: Tensor) -> int:
    """Return half the side, in pixels, of what a turn decodes now; 0 where that would be too small."""
    side, pixels = turn.config.decode_crop // turn.latent_pixels, turn.latent_pixels
    decoded = max(min(side or length, length) for length in latents.shape[-2:]) * pixels
    half = decoded // 2 // 8 * 8
    return half if half >= SMALLEST_WINDOW else 0


def _window(turn: AdversarialTurn, latents: Tensor) -> Setting | None:
    half, now = smaller_window(turn, latents), turn.config.decode_crop
    return Setting(f"--adt_decode_crop {half}", str(now) if now else "0, the whole image") if half else None


def _make_window_smaller(turn: AdversarialTurn, latents: Tensor) -> None:
    turn.config = replace(turn.config, decode_crop=smaller_window(turn, latents))


def _offload(turn: AdversarialTurn, latents: Tensor) -> Setting | None:
    return None if turn.offload.modules else Setting("--adt_offload", "off")


def _send_home(turn: AdversarialTurn, latents: Tensor) -> None:
    turn.offload.enable()


LEVERS = (
    Lever(("unroll", "decode", "observe", "gradient", "discriminator", "replay"), _no_graphs, _keep_no_graphs),
    Lever(("decode", "observe", "gradient"), _window, _make_window_smaller),
    Lever(("unroll", "discriminator", "replay"), _offload, _send_home),
)
"""From the top down; those that decide what the turn's images are do not help where these are not in memory."""


def settings_left(turn: AdversarialTurn, latents: Tensor) -> Iterator[Setting]:
    """Yield what a run could still set, from the top down."""
    settings = (lever.setting(turn, latents) for lever in LEVERS)
    yield from (setting for setting in settings if setting is not None)


def step_down(turn: AdversarialTurn, latents: Tensor, stage: str) -> Setting | None:
    """Pull the first lever that helps in this stage; return what it has set, or None if none is left."""
    for lever in LEVERS:
        setting = lever.setting(turn, latents) if stage in lever.stages else None
        if setting is not None:
            lever.pull(turn, latents)
            return setting
    return None
