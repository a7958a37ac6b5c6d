"""Layers of a transformers model that can have an adapter, and ours that they correspond to.

peft names layers as transformers does; the rules of the model's family map them to ours. The operation of a rule (order
of rotary pairs; q, k and v in one matrix) acts on the rows of a weight, so it applies to the rows of B and to the
magnitudes of DoRA; A is unchanged. If several of our layers are one layer in transformers, ours may have different A:
their adapter then has the sum of the ranks, and B is block-diagonal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from onmt_llm.checkpoint.formats.huggingface.write import family_for_export
from onmt_llm.checkpoint.formats.ops import Chain, Identity, Op, Transpose
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.nn.transformer import parameter_shapes

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class PeftLayer:
    """A layer of the transformers model that can have an adapter.

    Attributes:
        theirs: Its path in the transformers model.
        ours: Our layers that it corresponds to.
        op: From the rows of its weight to those of ours.
    """

    theirs: str
    ours: tuple[str, ...]
    op: Op

    @property
    def is_embedding(self) -> bool:
        return self.ours[0].endswith("embed_tokens")


@dataclass(frozen=True)
class LayerAdapter:
    """The adapter of one layer: A (rank, in), B (out, rank), the scale, and DoRA's magnitudes (out,)."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


def peft_layers(config: CheckpointConfig) -> list[PeftLayer]:
    """The layers of the transformers model that can have an adapter, from the rules of its family.

    A tensor without the ending of a layer's weight is not a layer there: gpt-oss' experts.
    """
    here, table = parameter_shapes(config.model), []
    for one in family_for_export(config.model, config.source).rules(config.model):
        matrices = all(name in here and len(here[name]) == 2 for name in one.ours)
        if matrices and len(one.theirs) == 1 and one.theirs[0].endswith(".weight"):
            ours = tuple(name.removesuffix(".weight") for name in one.ours)
            table.append(PeftLayer(one.theirs[0].removesuffix(".weight"), ours, _on_outputs(one.op)))
    return table


def _on_outputs(op: Op) -> Op:
    """The operation on a layer's outputs: how its matrix is stored does not concern A and B."""
    if isinstance(op, Chain):
        return Chain(tuple(_on_outputs(one) for one in op.ops))
    return Identity() if isinstance(op, Transpose) else op


def adapter_size(part: LayerAdapter, rslora: bool) -> tuple[int, float]:
    """Rank, and the alpha that yields the adapter's scale."""
    rank = part.a.shape[0]
    return rank, round(part.scale * (math.sqrt(rank) if rslora else rank), 9)


def most_common(sizes: Mapping[str, tuple[int, float]]) -> tuple[tuple[int, float], dict[str, int], dict[str, float]]:
    """The most common rank and alpha, and the layers with others."""
    usual = Counter(sizes.values()).most_common(1)[0][0]
    ranks = {name: rank for name, (rank, _) in sizes.items() if rank != usual[0]}
    alphas = {name: alpha for name, (_, alpha) in sizes.items() if alpha != usual[1]}
    return usual, ranks, alphas


def tied_embedding(where: str) -> UnsupportedError:
    return UnsupportedError(
        f"An adapter must not be on an embedding that is tied to the output layer, but that of {where} is: peft adapts "
        "the embedding only, while here the two stay tied."
    )
