"""Scale the channels inside gated feed-forward layers: a model computes the same, and the inputs of its `down_proj`
become easier to quantise.

These inputs are products, act(gate) * up, which no rotation reaches, and some channels are much larger than the others.
So the row of a channel in `up_proj` is divided by a number, and its column in `down_proj` multiplied by it, as in
SmoothQuant (Xiao et al. 2023). The number is the square root of the channel's root mean square on `channel_text.txt`.
That text must be varied: with plain English alone, int8 loses more in other languages than without scales
(docs/benchmarks/int8_quality.md).

Shapes: T tokens, F inner channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files

import torch
from torch import Tensor

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.log import logger
from onmt_llm.releasing.blockwise import Blockwise
from onmt_llm.releasing.verify import text_windows
from onmt_llm.text.codec import Codec

MOST_TOKENS = 640
"""Of the text, for tokenisers that divide it into very many."""
FEWEST_TOKENS = 256
"""That the vocabulary must have."""
_FLOOR = 0.03
"""Share of the mean square that is added to each: a channel that the text hardly uses is not divided by almost 0."""


def scaled(checkpoint: Checkpoint, original: Checkpoint, codec: Codec) -> tuple[Checkpoint, int]:
    """A model with scaled channels; its weights are computed when they are read.

    Args:
        checkpoint: A model that CTranslate2 can express, rotated or not.
        original: The same model, not rotated: it is run on the text, since reading it is faster.
        codec: Its vocabulary and tokeniser.

    Returns:
        The model, and on how many tokens the original was run. If the model is not a gated decoder, or has too few of
        the text's tokens: the same model, and 0.
    """
    config = checkpoint.config.model
    if not (config.is_decoder_only and config.ffn_gated):
        return checkpoint, 0
    windows = channel_windows(original, codec)
    tokens = sum(map(len, windows))
    if tokens < FEWEST_TOKENS:
        logger.info("Channels are not scaled: the vocabulary has %d tokens of the text for it.", tokens)
        return checkpoint, 0
    weights = ScaledWeights(checkpoint, channel_scales(original, windows))
    return checkpoint.with_weights(config, weights), tokens


def channel_text() -> str:
    """Short pieces of many kinds (languages, program code, numbers, dialogue), written for this purpose."""
    return (files("onmt_llm.releasing") / "channel_text.txt").read_text(encoding="utf-8")


def channel_windows(checkpoint: Checkpoint, codec: Codec) -> list[list[int]]:
    """Ids of the text's tokens in windows, without tokens that the vocabulary does not have; none for a model that was
    converted without its tokeniser."""
    if checkpoint.config.tokenizer.kind == "none":
        return []
    windows, room = [], MOST_TOKENS
    for window in text_windows(checkpoint, codec, channel_text()):
        known = [token for token in window if token in codec.vocab and token != codec.vocab.specials.unk][:room]
        windows += [codec.vocab.ids(known)] if known else []
        room -= len(known)
    return windows


def channel_scales(checkpoint: Checkpoint, windows: list[list[int]]) -> dict[str, Tensor]:
    """Scales (F) of the channels of each feed-forward layer, by its path; their mean is 1.

    Args:
        checkpoint: A decoder-only model, which is run with one block in memory at a time.
        windows: Token ids of independent texts.
    """
    sums: dict[str, Tensor] = {}
    tiny = torch.finfo(torch.float32).tiny

    def watch(layer: str, x_TF: Tensor) -> None:
        path, _, last = layer.rpartition(".")
        if last == "down_proj":
            squares_TF = x_TF.square()
            share_T = 1 / squares_TF.sum(dim=1).clamp(min=tiny)  # so that a token with large values counts once
            sums[path] = sums.get(path, torch.zeros(1)) + share_T @ squares_TF

    Blockwise(checkpoint).run(windows, watch=watch)
    scales = {path: (sum_F + _FLOOR * sum_F.mean()).clamp(min=tiny) ** 0.25 for path, sum_F in sums.items()}
    return {path: scale_F / scale_F.mean() for path, scale_F in scales.items()}


class ScaledWeights:
    """The tensors of a model with scaled channels. Those that the scales change are float32.

    Args:
        source: The model.
        scales: `channel_scales` of its feed-forward layers.
    """

    def __init__(self, source: Checkpoint, scales: Mapping[str, Tensor]) -> None:
        self._source = source
        self._names = source.names()
        self._factors: dict[str, Tensor] = {}
        for path, scale_F in scales.items():
            self._factors |= {
                f"{path}.up_proj.weight": 1 / scale_F[:, None],
                f"{path}.up_proj.bias": 1 / scale_F,
                f"{path}.down_proj.weight": scale_F,
            }

    def names(self) -> list[str]:
        return self._names

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self._factors else self._source.dtype(name)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """One tensor in blocks of rows."""
        return iter([self.tensor(name)]) if name in self._factors else self._source.blocks(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor of the scaled model."""
        tensor, factor = self._source.tensor(name), self._factors.get(name)
        return tensor if factor is None else tensor.float().mul_(factor)
