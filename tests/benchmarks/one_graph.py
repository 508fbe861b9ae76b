"""The usual way to supervise a sampler, to compare with: the whole unroll in one graph, as AlignProp does it."""

from __future__ import annotations

import torch

from adt_plugin.core.config import ADTConfig
from adt_plugin.core.stages import decode_generated, decode_real, score_generated
from adt_plugin.core.stopwatch import Stopwatch
from adt_plugin.cost.measure import Measured, peak_bytes
from adt_plugin.cost.workbench import Workbench


def measure_one_graph(bench: Workbench, watch: Stopwatch, config: ADTConfig, start: int) -> Measured:
    """Measure an unroll of `start` steps in one graph, of which the last `config.grad_steps` have a gradient."""
    peak = peak_bytes(bench, lambda: one_graph_step(bench, config, start))
    seconds = watch.seconds(lambda: one_graph_turn(bench, config, start), warm=True)
    bench.optimizer.zero_grad(set_to_none=True)
    return Measured(seconds, peak)


def one_graph_step(bench: Workbench, config: ADTConfig, start: int) -> None:
    """Take a step of the host with such an unroll."""
    bench.step()
    one_graph_turn(bench, config, start)
    bench.finish()


def one_graph_turn(bench: Workbench, config: ADTConfig, start: int) -> None:
    """Unroll, decode and judge; the gradients flow through the denoiser's inputs and stay in the parameters."""
    sampler = bench.workload.size.sampler()
    sampler.prepare(config.steps, start)
    latents = bench.clean
    for position, timestep in enumerate(sampler.timesteps[-start:]):
        with torch.set_grad_enabled(position >= start - config.grad_steps):
            output = bench.denoiser(latents, timestep.expand(len(latents))).float()
            latents = sampler.step(output, timestep, latents)
    generated = decode_generated(bench.decoder, latents, bench.crop, with_graph=True)
    features = bench.discriminator.pair_features(generated, decode_real(bench.decoder, bench.clean, bench.crop))
    score_generated(bench.discriminator, features, bench.loss, with_graph=True)[1].backward()
    bench.train_heads(features.detached())
