"""Two real processes: the same path, other noise, and heads that stay the same."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from adt_plugin.distributed import average_gradients
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    turn, net = toy_turn(steps=8), ToyDenoiser()
    starts, scores = [], []
    for step in range(4):
        latents = toy_latents(seed=10 * step + rank)
        diffusion_backward(turn, net, latents)
        report = turn(net, latents)
        starts.append((report.start, report.masked))
        scores.append(report.score_gen)
    heads = [parameter.flatten().tolist() for parameter in turn.discriminator.parameters()]
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"starts": starts, "scores": scores, "heads": heads}))
    dist.destroy_process_group()


def test_two_processes_walk_the_same_path_and_keep_the_same_heads(tmp_path: Path) -> None:
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["starts"] == second["starts"]
    assert first["scores"] != second["scores"]
    assert first["heads"] == second["heads"]


def test_alone_there_is_nothing_to_average() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    average_gradients([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
