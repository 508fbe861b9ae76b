"""The empty prompt's conditioning for classifier-free guidance, taken while the host still has its text encoders.

The host encodes prompts in one of two places: once, when it caches the encoders' outputs and then frees them, or in every
batch. Both are listened to, with the host's own tokenizer and encoding strategy.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from adt_plugin.core.config import ADTConfig, TurnConfig, with_guidance
from adt_plugin.core.diffusion.denoiser import Denoiser, Guided
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.forecast import COUNTED, as_sampled
from adt_plugin.core.rng import preserved_rng
from adt_plugin.host.calls import DenoiserCall
from adt_plugin.host.families import PROMPT_CACHING
from adt_plugin.host.seams import Function, SeamError, patch, patch_attribute

STRATEGIES = "library.strategy_base"

EMPTY = {"is_negative": True, "enable_dropout": False}
"""Options that some of the host's functions take: the negative prompt's form, and no caption dropout."""

OWN_MASKS = {"apply_lg_attn_mask": None, "apply_t5_attn_mask": None}
"""Options that some of them take: attention masks as the strategy was told, which is how the host caches."""


def settled(config: ADTConfig, model: str) -> ADTConfig:
    """Return the options with `--adt_cfg_scale auto` settled: as the model is sampled, if this host can encode prompts apart.

    Args:
        model: of `COUNTED`.
    """
    return as_sampled(config, model) if STRATEGIES in sys.modules else with_guidance(config, 1.0)


def advice(name: str, model: str, config: TurnConfig) -> str:
    """Return what to say to whoever trains without guidance what is sampled with it; empty for everyone else.

    Args:
        name: of the family, as users call it.
        model: of `COUNTED`.
    """
    if COUNTED[model].cfg_scale == 1 or config.guidance_scales[1] > 1:
        return ""
    way = "leave --adt_cfg_scale out" if STRATEGIES in sys.modules else "update sd-scripts to v0.10"
    return (
        f"Turns walk without guidance: if you sample {name} with it (CFG above 1), {way}, or samples may come out over-guided."
    )


class Guidance:
    """Classifier-free guidance of one run.

    Args:
        scale: above 1, of everything that draws none of its own.
        asked: by the user; otherwise a run goes on without it where the host never encodes the empty prompt.

    Raises:
        ConfigError: this version of the host has no encoding strategies.
    """

    def __init__(self, scale: float, asked: bool = True) -> None:
        strategies = sys.modules.get(STRATEGIES)
        if strategies is None:
            raise ConfigError("--adt_cfg_scale above 1 needs sd-scripts v0.10 or newer: update it, or leave the option out.")
        self.scale, self.asked, self.strategies = scale, asked, strategies
        self.encoded: list[Any] = []
        self.encoders: set[int] = set()

    @classmethod
    def from_config(cls, config: TurnConfig, asked: bool = True) -> Guidance | None:
        """Return a run's guidance, or None. Where turns draw their scales from a range, it is at the middle of it.

        Raises:
            ConfigError: this version of the host has no encoding strategies.
        """
        low, high = config.guidance_scales
        return cls((low + high) / 2, asked) if high > 1 else None

    @property
    def possible(self) -> bool:
        """Whether the empty prompt has been encoded, known when the denoiser is called, or has to have been."""
        return bool(self.encoded) or self.asked

    def install(self, undos: ExitStack) -> None:
        """Listen to both places, until `undos` is closed.

        Raises:
            SeamError: the host lacks one.
        """
        undos.callback(patch(PROMPT_CACHING, self._around_caching))
        for strategy in self.strategies.TextEncodingStrategy.__subclasses__():
            undos.callback(patch_attribute(strategy, "encode_tokens", self._around_encoding))

    def guided(self, call: DenoiserCall, denoiser: Callable[[DenoiserCall], Denoiser]) -> Guided:
        """Bind both predictions of a captured call; `denoiser` chooses how a call is made.

        Raises:
            SeamError: the empty prompt has never been encoded.
        """
        if not self.encoded:
            raise SeamError("the empty prompt was never encoded: leave --adt_cfg_scale out with this trainer")
        return Guided(denoiser(call), denoiser(call.conditioned(self.encoded)), self.scale)

    def _around_caching(self, original: Function) -> Function:
        def new_cache_text_encoder_outputs(dataset: Any, models: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            """Encode the empty prompt first: where outputs are on disk already, no encoding would pass by."""
            strategy = self.strategies.TextEncodingStrategy.get_strategy()
            tokenizer = self.strategies.TokenizeStrategy.get_strategy()
            with torch.no_grad(), preserved_rng():
                masks = known(strategy.encode_tokens, OWN_MASKS)
                strategy.encode_tokens(tokenizer, models, tokenizer.tokenize(""), **masks)
            return original(dataset, models, *args, **kwargs)

        return new_cache_text_encoder_outputs

    def _around_encoding(self, original: Function) -> Function:
        def encode_tokens(
            strategy: Any, tokenizer: Any, models: Sequence[Any], tokens: Sequence[Any], *args: Any, **kwargs: Any
        ) -> Any:
            encoders = {position for position, ids in enumerate(tokens) if ids is not None}
            if not encoders <= self.encoders or torch.is_grad_enabled():  # with gradient: the encoders are being trained
                options = kwargs | known(original, EMPTY)
                self._encode(lambda empty: original(strategy, tokenizer, models, empty, *args, **options), tokenizer, tokens)
                self.encoders |= encoders
            return original(strategy, tokenizer, models, tokens, *args, **kwargs)

        return encode_tokens

    def _encode(self, encode: Callable[[list[Any]], Sequence[Any]], tokenizer: Any, like: Sequence[Tensor | None]) -> None:
        """Encode the empty prompt with those encoders for which `like` has tokens, and keep the others' outputs."""
        with torch.no_grad(), preserved_rng():
            empty = tokenizer.tokenize("", **known(tokenizer.tokenize, EMPTY))
            outputs = encode([None if ids is None else part.to(ids.device) for part, ids in zip(empty, like, strict=True)])
        torch.clear_autocast_cache()  # before torch 2.10, weights cast without gradient would serve the host's own encoding
        before = self.encoded or [None] * len(outputs)
        self.encoded = [old if new is None else new for old, new in zip(before, outputs, strict=True)]


def known(function: Function, options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that a function of the host takes."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}
