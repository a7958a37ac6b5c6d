"""Rotate the residual stream of a model: its weights change, its logits do not, and its activations become easier to
quantise.

A few channels of the residual stream are much larger than the others. CTranslate2 quantises each token's activations
with one scale, which these channels determine, so that little precision is left for the rest. An orthogonal matrix R
spreads them over all channels. Every matrix that reads the stream is multiplied by R, every one that writes it by the
inverse, so nothing is computed in addition when the model runs (QuaRot, Ashkboos et al. 2024). The heads' values are
rotated too, between `v_proj` and `o_proj`.

Shapes: N vectors, D width of the stream, K key/value heads, H their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from onmt_llm.checkpoint.files.blocks import BLOCK_BYTES
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.cpu.fused import row_blocks
from onmt_llm.nn.positions import build_sinusoidal_table
from onmt_llm.nn.transformer import parameter_shapes

_LARGEST_FACTOR = 64
_SEED = 20240


def rotation_obstacle(config: ModelConfig) -> str | None:
    """Why the residual stream of this model cannot be rotated; None if it can."""
    if config.norm_position != "pre":
        return f"norm_position is {config.norm_position}, so that the weights of norms scale the residual stream itself"
    if config.embed_norm:
        return "embed_norm is true, so that the weights of a norm scale the residual stream itself"
    if config.src_features and config.feat_merge == "concat":
        return "feat_merge is concat, so that no embedding fills the residual stream"
    return None


def rotated(checkpoint: Checkpoint) -> Checkpoint:
    """A model that computes the same in a rotated residual stream; its weights are computed when they are read.

    Args:
        checkpoint: A whole model, without a `rotation_obstacle`.

    Raises:
        CheckpointError: The tensors do not fit the configuration.
    """
    checkpoint.check_fits(parameter_shapes(checkpoint.config.model))
    weights = RotatedWeights(checkpoint)
    return checkpoint.with_weights(weights.config, weights)


class Rotation:
    """A fixed orthogonal matrix R of a given size, which is never stored: random signs, then products with small
    orthogonal matrices over parts of the vector. Its cost for a vector is size * (sum of the factors), not size².

    Args:
        size: Length of the vectors.
        keeps_mean: R maps the vector of ones to itself, so that a LayerNorm's mean and variance stay the same.
    """

    def __init__(self, size: int, *, keeps_mean: bool = False) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        self._signs = torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1
        self._factors = [_orthogonal(factor) for factor in _factors(size)]
        self._reflection: Tensor | None = None
        if keeps_mean:
            mean = torch.full((size,), size**-0.5)
            difference = self(mean) - mean
            self._reflection = difference / difference.norm()

    def __call__(self, x_ND: Tensor) -> Tensor:
        """x R, for any leading shape. Vectors go in blocks that fit into the processor's cache: that is three times as
        fast."""
        if x_ND.nbytes <= BLOCK_BYTES:
            return self._rotated(x_ND)
        rotated_ND = torch.empty_like(x_ND)  # with the strides of x, which may be transposed
        for rows in row_blocks(len(x_ND), x_ND[:1].nbytes, BLOCK_BYTES):
            rotated_ND[rows] = self._rotated(x_ND[rows])
        return rotated_ND

    def _rotated(self, x_ND: Tensor) -> Tensor:
        shape, size = x_ND.shape, x_ND.shape[-1]
        x_ND = x_ND * self._signs
        for factor in self._factors:
            width = factor.shape[0]
            x_ND = (x_ND.reshape(-1, size // width, width) @ factor).transpose(1, 2)
        x_ND = x_ND.reshape(shape)
        if self._reflection is not None:
            x_ND = x_ND - 2 * (x_ND @ self._reflection)[..., None] * self._reflection
        return x_ND


def _factors(size: int) -> list[int]:
    """Factors of a size: powers of two up to 64, and the odd rest."""
    factors = []
    while size % 2 == 0:
        factor = min(size & -size, _LARGEST_FACTOR)
        factors.append(factor)
        size //= factor
    return [size, *factors] if size > 1 else factors


def _orthogonal(size: int) -> Tensor:
    """An orthogonal matrix that spreads each channel over all: Hadamard's, evenly, for powers of two; else Hartley's,
    whose entries cos + sin are at most sqrt(2 / size). A random matrix has larger ones."""
    if size & (size - 1):
        numbers = torch.arange(size, dtype=torch.float64)
        angles = torch.outer(numbers, numbers) * (2 * math.pi / size)
        return ((angles.cos() + angles.sin()) * size**-0.5).float()
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix * size**-0.5


class RotatedWeights:
    """The tensors of a model with a rotated residual stream, in float32.

    The weights of the norms move into the matrices that read them, since R cannot pass them; their biases move into the
    biases of these matrices, which the model then has. Output layer and embedding are no longer the same matrix, and
    sinusoidal positions become a table of learned ones. Encoder and decoder have the same R, and may share embeddings.

    Args:
        source: The original model.

    Attributes:
        config: The architecture of the rotated model.
    """

    def __init__(self, source: Checkpoint) -> None:
        config = source.config.model
        self._source, self._original = source, config
        self._has_shift = config.norm == "layernorm" and config.norm_bias
        changes: dict[str, object] = {"tie_embeddings": False}
        if self._has_shift:
            changes |= {"norm_bias": False, "attn_bias": True, "ffn_bias": True, "lm_head_bias": True}
        if config.position == "sinusoidal":
            changes |= {"position": "learned"}
        self.config = config.model_copy(update=changes)
        self._shapes = parameter_shapes(self.config)
        self._stream = Rotation(config.hidden_size, keeps_mean=config.norm == "layernorm")
        self._values = Rotation(config.size_per_head)

    def names(self) -> list[str]:
        return list(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def blocks(self, name: str) -> Iterator[Tensor]:
        """One tensor in blocks of rows; the matrices over the vocabulary are never computed as a whole."""
        if name.endswith("embed_tokens.weight"):
            yield from map(self._stream, self._read_blocks(name))
        elif name == "lm_head.weight":
            gamma_D = self._read("decoder.norm.weight")
            yield from (self._stream(rows * gamma_D) for rows in self._read_blocks(self._head))
        else:
            yield self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor of the rotated model."""
        layer, _, kind = name.rpartition(".")
        last = layer.rpartition(".")[2]
        if layer.endswith("norm") and last not in ("q_norm", "k_norm"):
            return torch.ones(self.config.hidden_size)
        if last == "embed_positions":
            return self._stream(self._positions(name))
        if last == "embed_tokens" or "embed_features" in layer:
            return self._stream(self._read(name))
        if last in ("o_proj", "down_proj"):
            return self._writing_weight(layer) if kind == "weight" else self._writing_bias(layer)
        norm = self._norm_before(layer)
        if norm is None:
            return self._read(name)
        tensor = self._reading_weight(layer, norm) if kind == "weight" else self._reading_bias(layer, norm)
        return self._rotate_rows(tensor) if last == "v_proj" and self._rotates_values(layer) else tensor

    def _norm_before(self, layer: str) -> str | None:
        """The norm whose output a layer reads; None if it reads something else than the residual stream."""
        block, _, last = layer.rpartition(".")
        block, _, part = block.rpartition(".")
        if layer == "lm_head":
            return "decoder.norm"
        if part == "cross_attn" and last in ("k_proj", "v_proj"):
            return "encoder.norm"
        if last in ("q_proj", "k_proj", "v_proj"):
            return f"{block}.{'cross_norm' if part == 'cross_attn' else 'attn_norm'}"
        if last in ("gate_proj", "up_proj"):
            return f"{block}.{'attn_norm' if self.config.shared_norm else 'mlp_norm'}"
        return None

    def _reading_weight(self, layer: str, norm: str) -> Tensor:
        return self._stream(self._original_weight(layer) * self._read(f"{norm}.weight"))

    def _reading_bias(self, layer: str, norm: str) -> Tensor:
        bias = self._original_bias(layer)
        return bias + self._original_weight(layer) @ self._read(f"{norm}.bias") if self._has_shift else bias

    def _writing_weight(self, layer: str) -> Tensor:
        weight = self._read(f"{layer}.weight")
        if layer.endswith("o_proj") and self._rotates_values(layer):
            weight = self._values(weight.unflatten(1, (-1, self.config.size_per_head))).flatten(1)
        return self._stream(weight.T).T.contiguous()  # no copy: the strides are those of the weight

    def _writing_bias(self, layer: str) -> Tensor:
        return self._stream(self._original_bias(layer))

    def _rotates_values(self, layer: str) -> bool:
        """Whether o_proj reads only values; with Shaw's positions a table is added to these."""
        return self.config.position != "shaw" or "cross_attn" in layer

    def _rotate_rows(self, tensor: Tensor) -> Tensor:
        """Rotate the values that a weight (K*H, D) or bias (K*H) of v_proj computes."""
        heads = tensor.unflatten(0, (-1, self.config.size_per_head)).movedim(1, -1)
        return self._values(heads).movedim(-1, 1).flatten(0, 1)

    @property
    def _head(self) -> str:
        """The matrix of the original output layer."""
        return "decoder.embed_tokens.weight" if self._original.tie_embeddings else "lm_head.weight"

    def _original_weight(self, layer: str) -> Tensor:
        return self._read(self._head if layer == "lm_head" else f"{layer}.weight")

    def _original_bias(self, layer: str) -> Tensor:
        """The bias of a layer; zeros if it gets one only by the rotation."""
        if layer == "lm_head":
            exists, size = self._original.lm_head_bias, self.config.vocab_size
        elif ".mlp." in layer:
            exists = self._original.ffn_bias
            size = self.config.hidden_size if layer.endswith("down_proj") else self.config.ffn_size
        elif layer.endswith("o_proj"):
            exists, size = self._original.attn_out_bias, self.config.hidden_size
        else:
            heads = self.config.heads if layer.endswith("q_proj") else self.config.num_kv_heads
            exists, size = self._original.attn_bias, heads * self.config.size_per_head
        return self._read(f"{layer}.bias") if exists else torch.zeros(size)

    def _positions(self, name: str) -> Tensor:
        config = self._original
        if config.position == "learned":
            return self._read(name)
        return build_sinusoidal_table(
            config.hidden_size, config.max_position, torch.device("cpu"), kind=config.sinusoid
        )

    def _read(self, name: str) -> Tensor:
        return self._source.tensor(name).float()

    def _read_blocks(self, name: str) -> Iterator[Tensor]:
        return (rows.float() for rows in self._source.blocks(name))
