"""`python probe.py RESULT SCRIPT ARGUMENTS...`: a real trainer with `--adt`, measured instead of trained.

Whether scale, shift, sign and time of a family are right shows even with random weights, against the host itself:

* The *oracle* is the output of the denoiser that makes the host's own loss zero. The loss is quadratic in every element of
  that output, so one Newton step finds it, without any knowledge of what the output means.
* With the oracle in place of the denoiser, the unroll of a (x_0, noise) pair has to come back to x_0.
* The noise level of the host's x_t follows from x_0 and the noise; the time that the plugin would hand over at that level
  has to be the host's.
* The plugin's decode of the host's x_0 has to be the VAE's own decode of its own latent of the same image.

The result is one JSON object of errors. Nothing is trained: the run ends as soon as every timestep has its oracle.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from observing import run_observed
from torch import Tensor

from adt_plugin.core.diffusion.unroll import noised_start, unroll
from adt_plugin.host.batch import Idle
from adt_plugin.host.families import Family
from adt_plugin.host.schedules import FlowSchedule
from adt_plugin.host.session import Session

STEPS = 4
OWN_DECODES = {
    "AutoencoderKL": lambda vae, images: vae.decode(vae.encode(images).latent_dist.mode()).sample,
    "SDVAE": lambda vae, images: vae.decode(vae.encode(images)),
    "AutoEncoder": lambda vae, images: vae.decode(vae.encode(images)),
    "AutoencoderKLQwenImage": lambda vae, images: vae.decode_to_pixels(vae.encode_pixels_to_latents(images)),
    "HunyuanVAE2D": lambda vae, images: vae.decode(vae.encode(images).mode()),
}
"""By the class of the host's VAE: its own decode of its own latent."""


class Probe:
    """Collects the host's own pairs and the oracle for them, one batch after the other."""

    def __init__(self, result: Path) -> None:
        self.result = result
        self.vae: Any = None
        self.images: Tensor | None = None
        self.output: Tensor | None = None
        self.oracle: dict[float, Tensor] = {}
        self.times: list[float] = []

    def on_vae(self, vae: Any) -> None:
        """Let the VAE encode without noise, and note what it is given."""
        self.vae = vae
        last = getattr(vae, "quant_conv", None) or vae.encoder.conv_out
        channels = last.weight.shape[0] // 2
        with torch.no_grad():
            last.weight[channels:] = 0
            last.bias[channels:] = -100
        encode = vae.encode

        def noted(images: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.images = images.detach().clone()
            return encode(images, *args, **kwargs)

        vae.encode = noted

    def before_noising(self, session: Session, given: dict[str, Any]) -> None:
        """Note the pair: the noise is handed over, or drawn next. Choose a timestep of the grid where the host lets us."""
        self.clean = given["latents"].detach().clone().float()
        self.samplers = self.samplers_of(session, given.get("noise_scheduler"))
        torch.manual_seed(0)
        self.noise = given.get("noise", torch.randn_like(self.clean)).clone().float()
        torch.manual_seed(0)
        session.args.min_timestep = self.missing(session)
        session.args.max_timestep = session.args.min_timestep + 1

    def samplers_of(self, session: Session, noise_scheduler: Any) -> dict[str, Any]:
        """A sampler of every name that the family knows, as the session would build it."""
        family, args, size = session.family, session.args, self.clean.shape[-2:]
        names = ("euler",) if is_flow(family) else ("ddim", "euler", "dpm++")
        samplers = {}
        for name in names:
            config = dataclasses.replace(session.config, sampler=name)
            samplers[name] = family.schedule.build(config, args, noise_scheduler)
            family.schedule.fit(samplers[name], config, size)
            samplers[name].prepare(STEPS, STEPS)
        return samplers

    def missing(self, session: Session) -> int:
        """A timestep without oracle; flow models have the same at all of them."""
        if is_flow(session.family):
            return 500
        wanted = {round(t) for sampler in self.samplers.values() for t in sampler.timesteps.tolist()}
        return min(wanted - set(self.oracle), default=0)

    def replaced_output(self, output: Any) -> Any:
        """In place of the denoiser's output, a leaf for the oracle."""
        tensor = getattr(output, "sample", output)
        self.output = torch.zeros_like(tensor, dtype=torch.float64).requires_grad_(True)
        if tensor is output:
            return self.output
        output.sample = self.output
        return output

    def on_loss(self, session: Session, loss: Tensor) -> None:
        """The oracle by one Newton step; the host's time beside the plugin's; the result once nothing is missing."""
        gradient = torch.autograd.grad(loss, self.output, create_graph=True)[0]
        curvature = torch.autograd.grad(gradient.sum(), self.output)[0]
        self.oracle[session.args.min_timestep] = (self.output - gradient / curvature).detach().float()
        self.times.append(self.time_error(session))
        if len(self.times) > 2 and self.missing(session) in (0, 500):
            self.result.write_text(json.dumps(self.errors(session)))
            raise SystemExit(0)
        session.batch, session.backward_seen = Idle(), True

    def time_error(self, session: Session) -> float:
        """Of the time that the plugin would hand over at the noise level of the host's x_t, in the host's unit."""
        if not is_flow(session.family):
            return 0.0
        convention, arguments = session.family.convention, session.batch.call.arguments
        clean, noise = convention.pack(self.clean), convention.pack(self.noise)
        noisy = arguments[convention.latents].detach().float()
        sigma = ((noisy - clean) * (noise - clean)).sum() / (noise - clean).square().sum()
        return float((convention.time(1000 * sigma).float() - arguments[convention.timestep].float()).abs().max())

    def errors(self, session: Session) -> dict[str, Any]:
        """Of the decode, of the time, and of every sampler's unroll from every start."""
        with torch.no_grad():
            images = OWN_DECODES[type(self.vae).__name__](self.vae, self.images).float()
            decoded = session.found["decoder"].to("cpu", torch.float32)(self.clean)
            limit = 1.0 if session.found["decoder"].latent_format.frames else float("inf")  # that VAE's own decode clamps
            images = images.squeeze(2) if images.ndim == 5 else images
            own_range = float(images.amax() - images.amin())
        return {
            "decode": float((decoded.clamp(-limit, limit) - images).abs().max()) / own_range,
            "time": max(self.times),
            "unroll": {name: self.unroll_errors(session, sampler) for name, sampler in self.samplers.items()},
        }

    def unroll_errors(self, session: Session, sampler: Any) -> list[float]:
        """From starts 1 to STEPS, relative to the latents' largest value."""

        def denoiser(x: Tensor, t: Tensor) -> Tensor:
            output = next(iter(self.oracle.values())) if is_flow(session.family) else self.oracle[round(float(t[0]))]
            return session.family.convention.unpack(output, x)

        errors = []
        for start in range(1, STEPS + 1):
            noised = noised_start(sampler, self.clean, self.noise, STEPS, start)
            path = unroll(denoiser, sampler, noised, [0] * start, [], False)
            errors.append(float((path.latents - self.clean).abs().max() / self.clean.abs().max()))
        return errors


def is_flow(family: Family) -> bool:
    """Whether the oracle is the same at every time."""
    return isinstance(family.schedule, FlowSchedule)


def install(probe: Probe) -> None:
    """Put the probe between the session and the host."""
    on_vae_loader, on_denoiser = Session.on_vae_loader, Session.on_denoiser

    def with_vae(session: Session, loaded: Any) -> None:
        probe.on_vae(session.family.vae_in(loaded))
        on_vae_loader(session, loaded)

    def around_noising(session: Session, original: Any) -> Any:
        signature = inspect.signature(original)

        def noising(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            session.on_noising(given.get("noise_scheduler"), given["latents"])
            probe.before_noising(session, given)
            return original(*args, **kwargs)

        return noising

    def with_denoiser(session: Session, denoiser: Any) -> None:
        on_denoiser(session, denoiser)
        denoiser.register_forward_hook(lambda module, args, output: probe.replaced_output(output))

    def around_backward(session: Session, original: Any) -> Any:
        return lambda loss, **kwargs: probe.on_loss(session, loss)

    Session.on_vae_loader, Session.on_denoiser = with_vae, with_denoiser
    Session._around_noising, Session._around_backward = around_noising, around_backward


if __name__ == "__main__":
    run_observed(lambda result: install(Probe(result)))
