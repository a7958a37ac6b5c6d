"""Token positions and their encodings: rotary, sinusoidal, ALiBi, and relative distances (Shaw, T5).

The tables are computed, not learned. They are float32 tensors outside of the modules' buffers: they are never saved,
never rounded by `model.to(torch.bfloat16)`, and exist for a model that was built on the meta device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig


@dataclass(frozen=True)
class Positions:
    """Positions of a run of tokens.

    Attributes:
        start: Index of the first token; tokens before it are in a cache.
        length: Number of tokens (T).
        index_BT: Position of each token where rows differ (left padding, packed documents); None = start, start + 1,
            ... in every row.
        place_T: Places of the tokens among the keys 0 ... `end` - 1, where they are in a tensor and may change
            (`StaticCache`); None = the last ones.
    """

    start: int
    length: int
    index_BT: Tensor | None = None
    place_T: Tensor | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    def places(self, device: torch.device) -> Tensor:
        """(T,): places of the tokens among the keys."""
        return torch.arange(self.start, self.end, device=device) if self.place_T is None else self.place_T

    @property
    def last(self) -> int:
        """The highest position of any token."""
        return self.end - 1 if self.index_BT is None else int(self.index_BT.max())

    def rows(self, table: Tensor) -> Tensor:
        """The rows of a table (P >= `end`) at these positions: (T, ...) if all rows agree, else (B, T, ...)."""
        return table[self.start : self.end] if self.index_BT is None else table[self.index_BT]

    def lengths(self) -> Tensor:
        """(B, T): length of the sequence that each token belongs to, up to the last of these tokens: of its row, or of
        its document in a packed row."""
        assert self.index_BT is not None
        number_BT = (self.index_BT == 0).cumsum(1)
        last = number_BT.new_zeros(len(number_BT), int(number_BT.max()) + 1)
        return last.scatter_reduce_(1, number_BT, self.index_BT, "amax").gather(1, number_BT) + 1


def left_padded(start: int, length: int, left_pad_B: Tensor) -> Positions:
    """Positions counted from the first real token of each row; padding has position 0."""
    index_T = torch.arange(start, start + length, device=left_pad_B.device)
    return Positions(start, length, (index_T - left_pad_B[:, None]).clamp(min=0))


def packed(doc_BT: Tensor) -> Positions:
    """Positions that restart at 0 with each document of a packed row; padding has position 0."""
    length = doc_BT.shape[1]
    index_T = torch.arange(length, device=doc_BT.device)
    starts_BT = torch.zeros_like(doc_BT, dtype=torch.long)
    starts_BT[:, 1:] = torch.where(doc_BT[:, 1:] != doc_BT[:, :-1], index_T[1:], 0)
    index_BT = index_T - starts_BT.cummax(dim=1).values
    return Positions(0, length, index_BT.masked_fill(doc_BT == 0, 0))


class PositionTable:
    """A table with one row per position, built on first use and rebuilt for more positions or another device.

    Args:
        build: (rows P, device) -> float32 tensor (P, ...).
    """

    def __init__(self, build: Callable[[int, torch.device], Tensor]) -> None:
        self._build = build
        self._table: Tensor | None = None

    def rows(self, positions: Positions, device: torch.device, dtype: torch.dtype) -> Tensor:
        table = self._table
        if table is None or table.device != device or table.shape[0] < positions.end:
            rows = max(256, 2 ** (positions.end - 1).bit_length())
            # A table that is built under inference_mode() must also serve the next training step.
            with torch.inference_mode(False), torch.no_grad():
                table = self._table = self._build(rows, device)
        return positions.rows(table).to(dtype)


class RotaryTable:
    """Cosines and sines of the angles by which `rotate` turns queries and keys.

    With `dynamic` and `longrope` the frequencies depend on the length of a sequence. Beyond the original context they
    are those of the sequence up to the last of the given tokens, as in transformers: keys that are already in a cache
    keep theirs.

    Args:
        rope: Frequencies and their scaling.
        rotary_dim: Rotated dimensions of a head (R).
    """

    def __init__(self, rope: RopeConfig, rotary_dim: int) -> None:
        self._rope, self._rotary_dim = rope, rotary_dim
        self._table = PositionTable(functools.partial(build_rotary_table, rope, rotary_dim))

    def rows(self, positions: Positions, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(T, 2, R) if all rows agree, else (B, T, 2, R)."""
        rope = self._rope
        if rope.scaling not in ("dynamic", "longrope") or positions.end <= rope.original_max_position:
            return self._table.rows(positions, device, dtype)
        with torch.no_grad():
            index, lengths = torch.arange(positions.start, positions.end, device=device), torch.tensor(positions.end)
            if positions.index_BT is not None:
                index, lengths = positions.index_BT, positions.lengths()
            frequencies = rotary_frequencies(rope, self._rotary_dim, device, lengths.to(device))
            return _cosines_and_sines(index, frequencies, rope.magnitude).to(dtype)


def rotary_frequencies(
    rope: RopeConfig, rotary_dim: int, device: torch.device, lengths: Tensor | None = None
) -> Tensor:
    """Angles per position, (..., rotary_dim / 2), after context scaling, for sequences of these lengths (...).

    In float32, like the implementations with which the published models were trained: at position 8000 the rounding of
    these values alone changes a cosine by 1e-4, so more precision here would mean less agreement.

    Args:
        rope: Frequencies and their scaling.
        rotary_dim: Rotated dimensions of a head.
        device: Of the result.
        lengths: For `dynamic` and `longrope`; None = within the original context.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim
    if rope.scaling == "longrope":
        return 1.0 / (_longrope_divisors(rope, lengths, device) * rope.theta**exponents)
    if rope.scaling == "dynamic" and lengths is not None:
        return 1.0 / _dynamic_theta(rope, lengths, rotary_dim)[..., None] ** exponents
    frequencies = 1.0 / rope.theta**exponents
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling == "llama3":
        return _scale_llama3(rope, frequencies)
    return _scale_yarn(rope, frequencies, rotary_dim) if rope.scaling == "yarn" else frequencies


def _scale_llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between interpolated."""
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    keep = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0.0, 1.0)
    return frequencies * (keep + (1 - keep) / rope.factor)


def _scale_yarn(rope: RopeConfig, frequencies: Tensor, rotary_dim: int) -> Tensor:
    """YaRN (Peng et al. 2023): as Llama 3.1, but interpolated by dimension instead of by frequency."""

    def dimension(turns: float) -> float:
        """Number of the frequency with so many turns in the original context."""
        wavelength = rope.original_max_position / turns
        return rotary_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    numbers = torch.arange(rotary_dim // 2, dtype=torch.float32, device=frequencies.device)
    keep = 1 - ((numbers - low) / (high - low if high != low else 0.001)).clamp(0.0, 1.0)
    return frequencies * keep + frequencies / rope.factor * (1 - keep)


def _longrope_divisors(rope: RopeConfig, lengths: Tensor | None, device: torch.device) -> Tensor:
    """LongRoPE (Ding et al. 2024): one divisor per frequency, others for sequences beyond the original context."""
    short, long = (
        torch.tensor(numbers, dtype=torch.float32, device=device) for numbers in (rope.short_factor, rope.long_factor)
    )
    return short if lengths is None else torch.where((lengths > rope.original_max_position)[..., None], long, short)


def _dynamic_theta(rope: RopeConfig, lengths: Tensor, rotary_dim: int) -> Tensor:
    """Dynamic NTK scaling: the base of the frequencies grows with the length beyond the original context."""
    original = rope.original_max_position
    growth = rope.factor * lengths.clamp(min=original).float() / original - (rope.factor - 1)
    return rope.theta * growth ** (rotary_dim / (rotary_dim - 2))


def build_rotary_table(rope: RopeConfig, rotary_dim: int, rows: int, device: torch.device) -> Tensor:
    """(P, 2, R): for both halves the cosines, and the sines with the sign that `rotate` needs."""
    frequencies = rotary_frequencies(rope, rotary_dim, device)
    return _cosines_and_sines(torch.arange(rows, device=device), frequencies, rope.magnitude)


def _cosines_and_sines(index: Tensor, frequencies: Tensor, magnitude: float) -> Tensor:
    """(..., 2, R) for positions (...) and frequencies (R / 2) or (..., R / 2)."""
    angles = index[..., None].float() * frequencies
    cos, sin = magnitude * angles.cos(), magnitude * angles.sin()
    return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=-2)


def rotate(x_BTNH: Tensor, rotary: Tensor) -> Tensor:
    """Rotate the first R dimensions of each head (RoPE), in the half-split layout.

    Args:
        x_BTNH: q or k of shape (B, T, N, H).
        rotary: Rows of `build_rotary_table`, (T, 2, R) or (B, T, 2, R), of the type of x.
    """
    cos, sin = rotary.unsqueeze(-3).unbind(-2)
    size = cos.shape[-1]
    rotated = x_BTNH[..., :size]
    # Rolling by R / 2 swaps the halves; the table has the sign. One multiply, one roll, one fused multiply-add.
    rotated = torch.addcmul(rotated * cos, rotated.roll(size // 2, dims=-1), sin)
    return rotated if size == x_BTNH.shape[-1] else torch.cat((rotated, x_BTNH[..., size:]), dim=-1)


def build_sinusoidal_table(size: int, rows: int, device: torch.device, kind: str = "standard") -> Tensor:
    """(P, D): sines in the first half of the dimensions, cosines in the second (Marian's layout), with the wavelengths
    of `ModelConfig.sinusoid`."""
    waves = -(-size // 2)
    if kind == "fairseq":
        return _build_fairseq_table(size, rows, device)
    longest = max(waves - 1, 1) if kind == "concat" else size / 2
    exponents = torch.arange(waves, dtype=torch.float64, device=device) / longest
    angles = torch.outer(torch.arange(rows, dtype=torch.float64, device=device), 10000.0**-exponents)
    return torch.cat((angles.sin(), angles.cos()[:, : size // 2]), dim=1).float()


def _build_fairseq_table(size: int, rows: int, device: torch.device) -> Tensor:
    """(P, D): the table of `concat` from its third row on (fairseq's positions begin at 2); in float32, like the table
    with which the published models were trained."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=device).float() * -(math.log(10000.0) / max(half - 1, 1)))
    angles = torch.outer(torch.arange(2, rows + 2, device=device).float(), frequencies)
    table_PD = torch.cat((angles.sin(), angles.cos()), dim=1)
    return torch.nn.functional.pad(table_PD, (0, size % 2))


def alibi_slopes(heads: int, device: torch.device) -> Tensor:
    """(N,) slopes of ALiBi (Press et al. 2022): a geometric series, interleaved with the next finer one when the
    number of heads is not a power of two."""
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def alibi_bias(query_T: Tensor, key_S: Tensor, slopes_N: Tensor) -> Tensor:
    """(N, T, S) bias of the scaled scores: slope times the (negative) distance, from the indices of query and key."""
    return slopes_N[:, None, None] * (key_S - query_T[:, None]).float()


def alibi_bias_falcon(positions_BS: Tensor, query: slice, slopes_N: Tensor, head_size: int) -> Tensor:
    """(B, N, T, S) bias of Falcon: added before the scores are scaled, and rounded to bf16 whatever the model's type,
    as when its published weights were trained.

    Args:
        positions_BS: Positions of all keys, (B, S) or (1, S).
        query: Which of them are the queries.
        slopes_N: Slopes of the heads.
        head_size: Width of a head; scores are scaled by its root.
    """
    bias_BNS = (slopes_N.bfloat16()[:, None] * positions_BS[:, None, :]).float() / math.sqrt(head_size)
    # Softmax ignores a constant per row: distances stay exact in 16 bits, positions would not.
    return bias_BNS[:, :, None, :] - bias_BNS[:, :, query, None]


def relative_index(config: ModelConfig, positions: Positions, device: torch.device, *, causal: bool) -> Tensor | None:
    """(T, S) rows of the table of distances (Shaw) or buckets (T5) for queries at `positions` and keys 0 ... end - 1.

    Left padding and packing do not change distances, so one index serves all rows. None if the model has no such
    table.
    """
    if config.position not in ("shaw", "t5"):
        return None
    distance_TS = torch.arange(positions.end, device=device) - positions.places(device)[:, None]
    if config.position == "shaw":
        limit = config.relative_positions
        return distance_TS.clamp(-limit, limit) + limit
    return t5_bucket(distance_TS, config.relative_buckets, config.relative_max_distance, causal=causal)


def t5_bucket(distance: Tensor, buckets: int, max_distance: int, *, causal: bool) -> Tensor:
    """Bucket of each distance (key minus query). Half of the buckets hold one distance each, the others grow with its
    logarithm; without `causal` half of either kind is for keys after the query.

    The logarithm is computed in float32, as in other implementations: another precision would choose another bucket at
    the edges.
    """
    offset = torch.zeros_like(distance)
    if causal:
        far = -distance.clamp(max=0)
    else:
        buckets //= 2
        offset, far = (distance > 0).long() * buckets, distance.abs()
    exact = buckets // 2
    growth = torch.log(far.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(far < exact, far, logarithmic)
