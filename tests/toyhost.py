"""A make-believe host in this process, which calls a session in sd-scripts' order; no work tree of sd-scripts is needed."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import Tensor, nn

from adt_plugin.core.config import ADTConfig
from adt_plugin.host.families import SD
from adt_plugin.host.seams import ending_the_run
from adt_plugin.host.session import Session


class UNet2DConditionModel(nn.Module):
    """Has the name by which the host's denoiser is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.layer(x) + context)


class TinyVae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = nn.Conv2d(4, 3, 1), nn.Identity()


class Host:
    """Calls a session as the host does; each stage can be left out."""

    def __init__(
        self,
        tmp_path: Path,
        backbone: Path,
        prior_loss_weight: float = 1.0,
        accelerator: Accelerator | None = None,
        **options: object,
    ) -> None:
        args = Namespace(
            output_dir=str(tmp_path),
            output_name="x",
            v_parameterization=False,
            min_timestep=None,
            max_timestep=None,
            max_train_steps=100,
            gradient_accumulation_steps=1,
            prior_loss_weight=prior_loss_weight,
        )
        config = ADTConfig(**{"backbone": str(backbone), "image_size": 28, "begin": 0.0, "warmup": 0, "steps": 4} | options)
        self.args, self.session = args, Session(config, args, SD)
        self.accelerator = accelerator or Accelerator(cpu=True)
        self.schedule = DDPMScheduler(beta_schedule="scaled_linear")
        ending_the_run(self.session.on_accelerator)(self.accelerator)

    def load(self) -> None:
        ending_the_run(self.session.on_vae_loader)((None, TinyVae(), None, True))

    def prepare(self) -> None:
        self.unet = self.accelerator.prepare(UNet2DConditionModel())

    def noise(self) -> None:
        ending_the_run(self.session.on_noising)(self.schedule, torch.randn(1, 4, 8, 8).to(self.accelerator.device))

    def forward(self) -> Tensor:
        given = (torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.zeros(()))
        prediction: Tensor = self.unet(*(tensor.to(self.accelerator.device) for tensor in given)).sample
        return prediction.square().mean()

    def gradient(self) -> Tensor:
        return self.unet.layer.weight.grad.clone()
