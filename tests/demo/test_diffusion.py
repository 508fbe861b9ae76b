"""Schedule and sampling, against diffusers and against a denoiser that knows the answer."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from adt_plugin.demo.data import decode
from adt_plugin.demo.diffusion import add_noise, alphas_cumprod, diffusion_pair, evaluation_noise, sample


class Oracle(nn.Module):
    """Predicts exactly the noise that separates its input from one known image's latents."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        alpha_bar = alphas_cumprod()[timesteps.long()].view(-1, 1, 1, 1)
        return (x - alpha_bar.sqrt() * self.clean) / (1 - alpha_bar).sqrt()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_schedule_is_stable_diffusions():
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(alphas_cumprod(), scheduler.alphas_cumprod)


def test_noising_is_the_schedulers():
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, noise, timesteps = normal(3, 4, 14, 14), normal(3, 4, 14, 14).flip(0), torch.tensor([0, 500, 999])
    torch.testing.assert_close(add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps))


def test_a_training_pair_is_drawn_from_the_generator_alone():
    before = torch.get_rng_state()
    first, second = (diffusion_pair(normal(4, 4, 14, 14), torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_a_perfect_denoiser_is_sampled_to_its_image(sampler: str, steps: int):
    clean = normal(1, 4, 14, 14).clamp(-0.9, 0.9)
    noise, labels = evaluation_noise(6, seed=3)
    images = sample(Oracle(clean), noise, labels, steps, sampler)
    # The grid's last timestep is 1, where Euler and DPM++ leave the fraction sqrt(1 - alpha_bar) = 0.04 of nothing.
    torch.testing.assert_close(images, decode(clean).expand_as(images), atol=2e-3, rtol=0)


def test_chunks_do_not_change_the_samples(tiny_study):
    noise, labels = evaluation_noise(7, seed=3)
    whole = sample(tiny_study.base.unet, noise, labels, 3)
    torch.testing.assert_close(sample(tiny_study.base.unet, noise, labels, 3, chunk=2), whole)


def test_evaluation_noise_is_shared_and_its_classes_are_even():
    first, second = evaluation_noise(30, seed=4), evaluation_noise(30, seed=4)
    assert torch.equal(first[0], second[0])
    assert torch.bincount(first[1]).tolist() == [3] * 10
    assert not torch.equal(first[0], evaluation_noise(30, seed=5)[0])
