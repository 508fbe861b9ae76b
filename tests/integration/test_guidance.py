"""Where the empty prompt's conditioning comes from, and that it stays right while text encoders train or are freed."""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.host import conventions, guidance
from adt_plugin.host.calls import DenoiserCall
from adt_plugin.host.families import FLUX
from adt_plugin.host.guidance import Guidance
from adt_plugin.host.seams import SeamError

HOST = """
class TokenizeStrategy:
    @classmethod
    def get_strategy(cls): return cls.current
class TextEncodingStrategy:
    @classmethod
    def get_strategy(cls): return cls.current
class DatasetGroup:
    def new_cache_text_encoder_outputs(self, models, accelerator): return "cached"
"""


class Tokenizer:
    """Two encoders' ids: the length of the text, and whether it was asked for as a negative prompt."""

    def tokenize(self, text: str, is_negative: bool = False) -> list[Tensor]:
        return [torch.full((1, 3), len(text)), torch.full((1, 2), float(is_negative))]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Modules in the host's places, with one encoding strategy whose outputs are the ids plus the models' weights."""
    for name in ("library.train_util", guidance.STRATEGIES):
        module = ModuleType(name)
        exec(HOST, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    strategies = sys.modules[guidance.STRATEGIES]

    class Encoding(strategies.TextEncodingStrategy):  # type: ignore[name-defined]
        def encode_tokens(self, tokenizer: Any, models: list[Any], tokens: list[Any], enable_dropout: bool = True) -> list[Any]:
            random.random()
            if enable_dropout and torch.is_grad_enabled() is False and self.strict:
                raise AssertionError("the empty prompt was dropped out")
            return [None if ids is None else ids + model.weight for model, ids in zip(models, tokens, strict=True)]

        strict = False

    strategies.TextEncodingStrategy.current, strategies.TokenizeStrategy.current = Encoding(), Tokenizer()
    yield strategies


def encoder(weight: float) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor(weight))
    return module


def installed(scale: float = 3.0) -> Guidance:
    listener = Guidance(scale)
    listener.install(ExitStack())
    return listener


def encode(host: ModuleType, models: list[Any], tokens: list[Any]) -> list[Any]:
    return host.TextEncodingStrategy.current.encode_tokens(host.TokenizeStrategy.current, models, tokens)


def test_what_the_host_encodes_is_left_as_it_is(host: ModuleType) -> None:
    installed()
    models, tokens = [encoder(10.0), encoder(20.0)], [torch.full((2, 3), 5), torch.full((2, 2), 7.0)]
    state = random.getstate()
    first, second = encode(host, models, tokens)
    assert first.tolist() == [[15.0] * 3] * 2 and second.tolist() == [[27.0] * 2] * 2
    after = random.getstate()
    random.setstate(state)
    random.random()
    assert random.getstate() == after  # one draw, the host's own


def test_caching_encodes_the_empty_prompt_before_the_encoders_are_freed(host: ModuleType) -> None:
    """Also when every output lies on disk already, so that the host itself would encode nothing."""
    listener = installed()
    group = sys.modules["library.train_util"].DatasetGroup()
    assert group.new_cache_text_encoder_outputs([encoder(10.0), encoder(20.0)], None) == "cached"
    first, second = listener.encoded
    assert first.tolist() == [[10.0] * 3] and second.tolist() == [[21.0] * 2]  # a negative prompt of no letters
    assert not first.requires_grad


def test_a_trained_encoder_is_asked_again_and_a_frozen_one_is_not(host: ModuleType) -> None:
    listener = installed()
    models, tokens = [encoder(10.0), encoder(20.0)], [torch.full((2, 3), 5), torch.full((2, 2), 7.0)]
    with torch.no_grad():
        encode(host, models, tokens)
        models[0].weight.fill_(11.0)
        encode(host, models, tokens)
    assert listener.encoded[0].tolist() == [[10.0] * 3]
    encode(host, models, tokens)
    assert listener.encoded[0].tolist() == [[11.0] * 3]


def test_encoders_that_are_asked_one_by_one_are_put_together(host: ModuleType) -> None:
    """As sd3_train.py does with CLIP and T5."""
    listener = installed()
    with torch.no_grad():
        encode(host, [encoder(10.0), None], [torch.full((2, 3), 5), None])
        assert listener.encoded[1] is None
        encode(host, [None, encoder(20.0)], [None, torch.full((2, 2), 7.0)])
    assert [part.tolist() for part in listener.encoded] == [[[10.0] * 3], [[21.0] * 2]]


def test_the_empty_prompt_is_never_dropped_out(host: ModuleType) -> None:
    listener = installed()
    host.TextEncodingStrategy.current.strict = True
    encode(host, [encoder(10.0), encoder(20.0)], [torch.full((2, 3), 5), torch.full((2, 2), 7.0)])
    assert listener.encoded


class Context(nn.Module):
    """Its prediction is its conditioning's mean."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=x * 0 + context.mean((1, 2)).view(-1, 1, 1, 1))


def captured(context: Tensor) -> DenoiserCall:
    args = (torch.zeros(2, 4, 2, 2), torch.zeros(2), context)
    return DenoiserCall.captured(Context(), args, {}, conventions.SD, torch.enable_grad)


def test_the_guided_prediction_combines_prompt_and_empty_prompt(host: ModuleType) -> None:
    listener = installed(scale=3.0)
    listener.encoded = [torch.full((1, 3, 5), 1.0, dtype=torch.float64)]
    guided = listener.guided(captured(torch.full((2, 3, 5), 2.0)), lambda call: call)
    assert guided(torch.zeros(2, 4, 2, 2), torch.zeros(2)).unique().tolist() == [1.0 + 3.0 * (2.0 - 1.0)]


@pytest.mark.parametrize(("given", "scale"), [("1.0", None), ("3", 3.0), ("1:7", 4.0), ("1:1", None)])
def test_a_run_is_guided_where_a_scale_above_one_is_possible(host: ModuleType, given: str, scale: float | None) -> None:
    listener = Guidance.from_config(ADTConfig(cfg_scale=given))
    assert (listener.scale if listener else None) == scale


@pytest.mark.parametrize(("model", "scale", "said"), [("sdxl", "1.0", True), ("sdxl", "1:7", False), ("flux", "1.0", False)])
def test_who_samples_with_guidance_is_told_to_train_with_it(host: ModuleType, model: str, scale: str, said: bool) -> None:
    sentence = guidance.advice("Stable Diffusion XL", model, ADTConfig(cfg_scale=scale))
    assert ("if you sample Stable Diffusion XL with it" in sentence and "leave --adt_cfg_scale out" in sentence) is said
    assert bool(sentence) is said


def test_the_default_is_how_a_model_is_sampled(host: ModuleType) -> None:
    scales = {model: guidance.settled(ADTConfig(), model).guidance_scales for model in ("sd15", "sdxl", "chroma", "flux")}
    assert scales == {"sd15": (3.0, 3.0), "sdxl": (3.0, 3.0), "chroma": (3.0, 3.0), "flux": (1.0, 1.0)}
    assert guidance.settled(ADTConfig(cfg_scale="1"), "sdxl").cfg_scale == "1"


@pytest.mark.parametrize(("model_type", "model"), [("flux", "flux"), ("chroma", "chroma")])
def test_chroma_is_told_from_flux_by_the_hosts_option(model_type: str, model: str) -> None:
    assert FLUX.counted(Namespace(model_type=model_type)) == model


def test_an_old_host_walks_without_guidance_unless_asked_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, guidance.STRATEGIES, raising=False)
    config = guidance.settled(ADTConfig(), "sd15")
    assert config.cfg_scale == "1" and Guidance.from_config(config, asked=False) is None
    assert "update sd-scripts to v0.10" in guidance.advice("Stable Diffusion 1.x/2.x", "sd15", config)


@pytest.mark.parametrize("asked", [True, False])
def test_a_default_is_possible_only_with_the_empty_prompt(host: ModuleType, asked: bool) -> None:
    listener = Guidance.from_config(ADTConfig(cfg_scale="3"), asked)
    assert listener is not None and listener.possible is asked
    listener.encoded = [torch.zeros(1, 3, 5)]
    assert listener.possible


def test_guidance_without_an_empty_prompt_is_said(host: ModuleType) -> None:
    with pytest.raises(SeamError, match="leave --adt_cfg_scale out"):
        installed().guided(captured(torch.zeros(2, 3, 5)), lambda call: call)


def test_an_old_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, guidance.STRATEGIES, raising=False)
    with pytest.raises(ConfigError, match="--adt_cfg_scale above 1 needs sd-scripts v0.10"):
        Guidance(2.0)
