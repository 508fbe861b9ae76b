"""Transformers whose matrices have a published size, for models that the diffusers of sd-scripts does not have.

What costs time and memory is there: the blocks' projections, attention and modulation, on as many tokens. Rotary embeddings,
norms of queries and keys, refiners of the text and a model's first and last layers are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class StackSize:
    """What a transformer's cost depends on.

    Attributes:
        width, heads: of its blocks.
        double: blocks with weights of their own for image and text, which attend to each other.
        single: blocks after those, which see image and text as one sequence; with `cross`, the image alone.
        hidden: width inside the feed-forward layers.
        latent_channels, patch: of the latents, and the side of the squares of them that are a token.
        context: text tokens.
        kv_heads: of keys and values; 0 for as many as of queries.
        gated: the feed-forward layers have a third matrix (SwiGLU).
        cross: width of the text that single blocks attend to; 0 where it is in the sequence.
        modulation: width inside the modulation of a block, 0 for a whole matrix, None for none.
    """

    width: int
    heads: int
    double: int
    single: int
    hidden: int
    latent_channels: int
    patch: int
    context: int
    kv_heads: int = 0
    gated: bool = False
    cross: int = 0
    modulation: int | None = 0


class Attention(nn.Module):
    """Projections of one stream, and attention over the queries, keys and values of all streams.

    Args:
        source: width of what keys and values come from.
    """

    def __init__(self, size: StackSize, source: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = size.heads, size.kv_heads or size.heads
        self.query = nn.Linear(size.width, size.width)
        self.key_value = nn.Linear(source, 2 * size.width // self.heads * self.kv_heads)
        self.out = nn.Linear(size.width, size.width)

    def project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values `(B, heads, tokens, width / heads)`."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            part.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2).repeat_interleave(self.heads // self.kv_heads, 1)
            for part in self.key_value(source).chunk(2, -1)
        )
        return query, key, value


def attend(projected: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Attend over the sequence of all streams; `(B, tokens, width)`."""
    query, key, value = (torch.cat(parts, 2) for parts in zip(*projected, strict=True))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Stream(nn.Module):
    """A block's own weights for one sequence: attention, feed-forward, modulation."""

    def __init__(self, size: StackSize, streams: int) -> None:
        super().__init__()
        width, gates = size.width, 2 if size.gated else 1
        self.gated = size.gated
        self.attention = Attention(size, width)
        self.cross = Attention(size, size.cross) if size.cross else None
        self.up, self.down = nn.Linear(width, gates * size.hidden), nn.Linear(size.hidden, width)
        self.modulation = None if size.modulation is None else modulation(size, modulated(size, streams))

    def feed(self, x: Tensor) -> Tensor:
        """Apply the feed-forward layers."""
        if not self.gated:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        first, second = self.up(x).chunk(2, -1)
        return self.down(F.silu(first) * second)


def modulated(size: StackSize, streams: int) -> int:
    """Return how many vectors modulate a stream: shifts, scales and gates of its parts."""
    if size.cross:
        return 9
    if streams == 2:
        return 6
    return 3 if size.double else 4  # FLUX's parallel blocks; Lumina's


def modulation(size: StackSize, factor: int) -> nn.Module:
    """Return what makes `factor` vectors of the block's width from the timestep's."""
    if not size.modulation:
        return nn.Linear(size.width, factor * size.width)
    return nn.Sequential(nn.Linear(size.width, size.modulation), nn.Linear(size.modulation, factor * size.width))


class Block(nn.Module):
    """One transformer block of one or two streams."""

    def __init__(self, size: StackSize, streams: int) -> None:
        super().__init__()
        self.streams = nn.ModuleList(Stream(size, streams) for _ in range(streams))

    def forward(self, vector: Tensor, text: Tensor, *sequences: Tensor) -> tuple[Tensor, ...]:
        """Return the sequences `(B, tokens, width)`, one per stream, after the block."""
        streams: list[Stream] = list(self.streams)  # type: ignore[arg-type]
        normed = [self._modulated(stream, x, vector) for stream, x in zip(streams, sequences, strict=True)]
        joined = attend([stream.attention.project(x, x) for stream, x in zip(streams, normed, strict=True)])
        attended = joined.split([x.shape[1] for x in sequences], 1)
        return tuple(self._after(stream, x, a, text) for stream, x, a in zip(streams, sequences, attended, strict=True))

    @staticmethod
    def _modulated(stream: Stream, x: Tensor, vector: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:])
        return normed if stream.modulation is None else normed + stream.modulation(vector)[:, None, : x.shape[-1]]

    @staticmethod
    def _after(stream: Stream, x: Tensor, attended: Tensor, text: Tensor) -> Tensor:
        x = x + stream.attention.out(attended)
        if stream.cross is not None:
            query = F.layer_norm(x, x.shape[-1:])
            x = x + stream.cross.out(attend([stream.cross.project(query, text)]))
        return x + stream.feed(F.layer_norm(x, x.shape[-1:]))


class Stack(nn.Module):
    """A transformer of this size as a denoiser: latents `(B, C, h, w)` and text `(B, context, width)` -> `(B, C, h, w)`."""

    def __init__(self, size: StackSize) -> None:
        super().__init__()
        self.size, self.checkpointing = size, False
        token = size.latent_channels * size.patch**2
        self.into, self.back = nn.Linear(token, size.width), nn.Linear(size.width, token)
        self.double_transformer_blocks = nn.ModuleList(Block(size, 2) for _ in range(size.double))
        self.single_transformer_blocks = nn.ModuleList(Block(size, 1) for _ in range(size.single))

    def enable_gradient_checkpointing(self) -> None:
        """Keep the blocks' inputs alone for the backward pass."""
        self.checkpointing = True

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        """Return a prediction of the latents' shape."""
        patch, (rows, columns) = self.size.patch, latents.shape[-2:]
        image = self.into(F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2))
        vector = image.mean(1)
        for block in self.double_transformer_blocks:
            text, image = self._through(block, vector, text, text, image)
        sequence = image if self.size.cross else torch.cat([text, image], 1)
        for block in self.single_transformer_blocks:
            (sequence,) = self._through(block, vector, text, sequence)
        tokens = self.back(sequence[:, -image.shape[1] :]).transpose(1, 2)
        return F.pixel_shuffle(tokens.unflatten(2, (rows // patch, columns // patch)), patch)

    def _through(self, block: nn.Module, *arguments: Tensor) -> tuple[Tensor, ...]:
        run = partial(checkpoint, block, use_reentrant=False) if self.checkpointing and torch.is_grad_enabled() else block
        result: tuple[Tensor, ...] = run(*arguments)
        return result
