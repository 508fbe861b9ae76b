"""How each family's denoiser is called again: packing, time, prompt, output."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.errors import ConfigError
from adt_plugin.core.images.decoding import LatentDecoder
from adt_plugin.host import conventions, schedules, vaes
from adt_plugin.host.calls import DenoiserCall
from adt_plugin.host.families import FAMILIES, FLUX, HUNYUAN, LUMINA, SD, SD3, Family

SIGMA = torch.tensor([0.25])


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        (conventions.SD, 250.0),
        (conventions.SDXL, 250.0),
        (conventions.SD3, 250.0),
        (conventions.FLUX, 0.25),
        (conventions.LUMINA, 0.75),
        (conventions.ANIMA, 0.25),
        (conventions.HUNYUAN, 250),
    ],
)
def test_the_time_of_a_quarter_noise(convention: conventions.Convention, expected: float) -> None:
    time = convention.time(1000 * SIGMA)
    assert time.tolist() == [expected]
    assert time.is_floating_point() == isinstance(expected, float)


def test_tokens_of_two_by_two_latents_go_there_and_back() -> None:
    latents = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    packed = conventions.pack_patches(latents)
    assert packed.shape == (2, 6, 12)
    assert packed[0, 1].tolist() == latents[0, :, 0:2, 2:4].flatten().tolist()  # second token of the first row, channels first
    assert torch.equal(conventions.unpack_patches(packed, latents), latents)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_packed_prediction_unpacks_to_the_latents_shape(family: Family) -> None:
    latents = torch.randn(2, 16, 4, 6)
    convention = family.convention
    sign = -1 if family is LUMINA else 1
    assert torch.equal(convention.unpack(convention.pack(latents), latents), sign * latents)


class Recorder(nn.Module):
    """Notes its arguments and returns the latents."""

    def forward(self, *args: object, **kwargs: object) -> object:
        self.args, self.kwargs = args, kwargs
        return kwargs.get("img", args[0] if args else None)


def test_flux_is_called_by_keywords_with_packed_latents_and_chromas_modulation_left_to_it() -> None:
    latents = torch.randn(1, 16, 4, 4, dtype=torch.bfloat16)
    kwargs = {"img": conventions.pack_patches(latents), "timesteps": SIGMA, "txt": torch.ones(1, 2, 3), "mod_vectors": SIGMA}
    call = DenoiserCall.captured(Recorder(), (), kwargs, conventions.FLUX, torch.no_grad)
    assert torch.equal(call(latents.float(), torch.tensor([500.0])), latents)
    seen = call.module.kwargs
    assert seen["img"].dtype == torch.bfloat16 and seen["timesteps"].tolist() == [0.5] and seen["mod_vectors"] is None
    assert torch.equal(seen["txt"], kwargs["txt"])


def test_anima_takes_the_precision_of_its_embedding_from_the_time() -> None:
    """In bf16 its blocks multiply that embedding by their weights with autocast off."""
    given = (torch.randn(1, 16, 1, 4, 4, dtype=torch.bfloat16), SIGMA.bfloat16())
    call = DenoiserCall.captured(Recorder(), given, {}, conventions.ANIMA, torch.no_grad)
    call(torch.randn(1, 16, 4, 4), torch.tensor([500.0]))
    assert [argument.dtype for argument in call.module.args] == [torch.bfloat16] * 2


def test_an_argument_that_the_host_does_not_hand_over_is_not_invented() -> None:
    kwargs = {"img": conventions.pack_patches(torch.randn(1, 16, 4, 4)), "timesteps": SIGMA}
    call = DenoiserCall.captured(Recorder(), (), kwargs, conventions.FLUX, torch.no_grad)
    call(torch.randn(1, 16, 4, 4), torch.tensor([500.0]))
    assert set(call.module.kwargs) == {"img", "timesteps"}


def test_a_captured_call_is_repeated_with_other_latents_and_without_the_old_graph() -> None:
    weight = nn.Parameter(torch.ones(()))
    module = nn.Module()
    module.forward = lambda x, t, context, scale=None: SimpleNamespace(sample=x * weight + t.view(-1, 1) + context + scale)  # type: ignore[method-assign]
    context = torch.full((1, 2), 3.0, requires_grad=True)
    call = DenoiserCall.captured(
        module, (torch.zeros(1, 2), torch.zeros(1), context), {"scale": 5}, conventions.SD, torch.enable_grad
    )
    output = call(torch.full((1, 2), 7.0), torch.full((1,), 2.0))
    torch.testing.assert_close(output, torch.full((1, 2), 7.0 + 2 + 3 + 5))
    output.sum().backward()
    assert weight.grad is not None and context.grad is None


def test_a_call_without_checkpointing_restores_every_modules_mode() -> None:
    module = nn.Sequential(nn.Identity(), nn.Identity()).train()
    module[1].eval()
    seen = []
    module[0].register_forward_pre_hook(lambda m, args: seen.append(m.training))
    call = DenoiserCall(module, {0: torch.zeros(1, 2), 1: None}, conventions.SD, torch.no_grad)
    call.module.forward = lambda x, t: module[0](x)  # type: ignore[method-assign]
    call.without_checkpointing(torch.zeros(1, 2), torch.zeros(1))
    assert seen == [False]
    assert (module.training, module[0].training, module[1].training) == (True, True, False)


def conditioned(family: Family, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], encoded: list[Tensor]) -> DenoiserCall:
    return DenoiserCall.captured(Recorder(), args, kwargs, family.convention, torch.no_grad).conditioned(encoded)


def test_sdxl_keeps_its_sizes_and_crops() -> None:
    vector = torch.cat([torch.ones(2, 5), torch.arange(6.0).expand(2, 6)], dim=1)
    args = (torch.zeros(2, 4, 2, 2), torch.zeros(2), torch.ones(2, 3, 7), vector)
    empty = [torch.zeros(1, 3, 4), torch.zeros(1, 3, 3), torch.zeros(1, 5)]
    call = DenoiserCall.captured(Recorder(), args, {}, conventions.SDXL, torch.no_grad).conditioned(empty)
    assert call.arguments[2].shape == (2, 3, 7) and not call.arguments[2].any()
    assert call.arguments[3].tolist() == [[0.0] * 5 + [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 2


@pytest.mark.parametrize("with_t5", [True, False])
def test_sd3_puts_clip_before_t5_at_t5s_width(with_t5: bool) -> None:
    kwargs = {"context": torch.ones(2, 5, 8), "y": torch.ones(2, 6)}
    empty = [torch.full((1, 2, 3), 2.0), torch.full((1, 3, 8), 3.0) if with_t5 else None, torch.full((1, 6), 4.0)]
    call = conditioned(SD3, (torch.zeros(2, 16, 2, 2), torch.zeros(2)), kwargs, empty)
    context = call.arguments["context"]
    assert context.shape == (2, 5, 8)
    assert context[1, 0].tolist() == [2.0] * 3 + [0.0] * 5 and context[1, 4].tolist() == [3.0 if with_t5 else 0.0] * 8
    assert call.arguments["y"].unique().tolist() == [4.0]


def test_a_mask_that_the_run_does_not_use_stays_unused() -> None:
    kwargs = {"img": torch.zeros(1, 4, 64), "timesteps": SIGMA, "txt": torch.ones(1, 2, 3), "txt_attention_mask": None}
    empty = [torch.zeros(1, 5), torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), torch.zeros(1, 4)]
    call = conditioned(FLUX, (), kwargs, empty)
    assert call.arguments["txt"].shape == (1, 4, 3) and call.arguments["txt_attention_mask"] is None
    assert "y" not in call.arguments


def test_hunyuan_takes_another_length_of_prompt() -> None:
    args = (torch.zeros(2, 64, 2, 2), torch.zeros(2).long(), *(torch.ones(2, n, 3).half() for n in (6, 6, 4, 4)))
    call = conditioned(HUNYUAN, args, {}, [torch.zeros(1, n, 3) for n in (2, 2, 1, 1)])
    assert [call.arguments[place].shape for place in (2, 3, 4, 5)] == [(2, n, 3) for n in (2, 2, 1, 1)]
    assert call.arguments[2].dtype == torch.float16


# Schedules


def test_fluxs_shift_at_its_two_sizes() -> None:
    assert schedules.flux_shift((32, 32)) == pytest.approx(2.718281828**0.5)
    assert schedules.flux_shift((128, 128)) == pytest.approx(2.718281828**1.15)


def test_a_flow_grid_is_fitted_to_the_batch_unless_the_user_says_otherwise() -> None:
    for shift, expected in ((0.0, schedules.flux_shift((64, 64))), (2.0, 2.0)):
        config = ADTConfig(flow_shift=shift)
        sampler = FLUX.schedule.build(config, Namespace(), None)
        FLUX.schedule.fit(sampler, config, (64, 64))
        sampler.prepare(2, 2)
        assert float(sampler.scheduler.sigmas[1]) == pytest.approx(expected * 0.5 / (1 + (expected - 1) * 0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("family", "options", "flag"),
    [
        (SD3, {"sampler": "ddim"}, "--adt_sampler ddim"),
        (SD3, {"sampler": "dpm++"}, "--adt_sampler dpm"),
        (FLUX, {"spacing": "leading"}, "--adt_spacing leading"),
        (SD, {"flow_shift": 3.0}, "--adt_flow_shift"),
    ],
)
def test_an_option_without_meaning_for_the_family_is_refused(family: Family, options: dict[str, object], flag: str) -> None:
    args = Namespace(zero_terminal_snr=False, v_parameterization=False)
    with pytest.raises(ConfigError, match=flag):
        family.schedule.preview(ADTConfig(**options), args)


# FHfanshu's fork, whose Anima trainer is its own


def test_latents_of_a_video_model_lose_their_only_frame() -> None:
    latents = torch.randn(2, 16, 1, 4, 6)
    assert torch.equal(conventions.without_frames(latents), latents[:, :, 0])
    still = latents[:, :, 0]
    assert conventions.without_frames(still) is still
    assert conventions.ANIMA.pack(conventions.without_frames(latents)).shape == latents.shape


def test_a_mean_and_an_inverse_deviation_are_the_hosts_format() -> None:
    """Wan's decode: z / scale[1] + scale[0], then conv2, then the decoder."""
    mean, inverse = torch.randn(16), torch.rand(16) + 0.5
    parts = SimpleNamespace(decoder=nn.Conv3d(16, 3, 1), conv2=nn.Conv3d(16, 16, 1))
    vae = vaes.qwen_vae(SimpleNamespace(model=parts, scale=[mean, inverse]))
    decoder = LatentDecoder.copied_from(vae, vaes.qwen_format(vae))
    latents = torch.randn(2, 16, 4, 6)
    own = latents[:, :, None] / inverse.view(16, 1, 1, 1) + mean.view(16, 1, 1, 1)
    torch.testing.assert_close(decoder(latents), parts.decoder(parts.conv2(own)).squeeze(2))
    assert vaes.qwen_vae(vae) is vae
