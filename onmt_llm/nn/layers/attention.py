"""Multi-head attention over the input itself or over an encoder's output (cross attention).

`Attention` projects, encodes positions and uses the cache; the function `attend` is the attention itself. On a CPU
`attend` uses the kernels of `nn/cpu/` where they are faster; everything else is torch's scaled_dot_product_attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.cpu.dropout import attend_with_dropout
from onmt_llm.nn.cpu.dropout import dropout as drop
from onmt_llm.nn.cpu.few_queries import are_few, attend_few
from onmt_llm.nn.cpu.tiled_attention import attend_tiled, mask_tiles, torch_is_faster
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.position_wise import build_head_norm, capped
from onmt_llm.nn.layers.sinks import attend_one_with_sinks, with_sink_key
from onmt_llm.nn.masks import Mask
from onmt_llm.nn.positions import rotate
from onmt_llm.nn.uncompiled import uncompiled

_CPU_HAS_BF16 = torch.cpu._is_avx512_bf16_supported()


@dataclass
class Alignment:
    """Request for the weights of a cross attention; the block that gets it stores them here.

    Attributes:
        heads: Number of heads, from the first, to average; 0 = all.
        mask: Mask of the block's self-attention for this purpose, if another than usual (`full_context_alignment`:
            later target tokens too).
        weights_BTS: Attention to each source position, before dropout.
    """

    heads: int = 0
    mask: Mask | None = None
    weights_BTS: Tensor | None = None


@dataclass(frozen=True)
class RelativeVectors:
    """Shaw's relative positions: a vector per clipped distance, and the distance of each query and key.

    Attributes:
        table_RH: The vectors.
        index_TS: The row of each pair.
    """

    table_RH: Tensor
    index_TS: Tensor


def build_relative_bias(config: ModelConfig) -> nn.Embedding:
    """T5's table: a bias per bucket and head."""
    return nn.Embedding(config.relative_buckets, config.heads)


def relative_bias(table: nn.Embedding, relative_TS: Tensor) -> Tensor:
    """(1, N, T, S) bias of the scores, in float32."""
    return table(relative_TS).permute(2, 0, 1)[None].float()


class Attention(nn.Module):
    """Scaled dot-product attention with grouped key/value heads (Ainslie et al. 2023).

    With `position: shaw` a self-attention has one table of vectors for clipped distances, which are added to keys and
    values alike, as in OpenNMT-py; with `position: t5` it has a table of biases, unless the whole stack shares one.

    Args:
        config: The model.
        layer: Index of this layer in the KV cache.
        cross: Attend to an encoder's output instead of the input.
        dropout: Of the attention weights.
    """

    def __init__(self, config: ModelConfig, *, layer: int, cross: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        size, heads, kv_heads = config.size_per_head, config.heads, config.num_kv_heads
        self.layer, self.cross, self.dropout, self.head_size = layer, cross, dropout, size
        self.q_proj = nn.Linear(config.hidden_size, heads * size, bias=config.attn_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * size, bias=config.attn_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * size, bias=config.attn_bias)
        self.o_proj = nn.Linear(heads * size, config.hidden_size, bias=config.attn_out_bias)
        self.scale, self.softcap = config.attention_factor, config.attention_softcap
        shaw = config.position == "shaw" and not cross
        own_bias = config.position == "t5" and not cross and not config.relative_shared
        self.sinks = nn.Parameter(torch.zeros(heads)) if config.attention_sinks and not cross else None
        self.embed_relative = nn.Embedding(2 * config.relative_positions + 1, size) if shaw else None
        self.relative_bias = build_relative_bias(config) if own_bias else None
        self.q_norm = build_head_norm(config, heads) if config.qk_norm else None
        self.k_norm = build_head_norm(config, kv_heads) if config.qk_norm else None
        self.norm_heads = config.qk_norm_over == "head"

    def forward(
        self,
        x_BTD: Tensor,
        mask: Mask,
        *,
        rotary: Tensor | None = None,
        relative_TS: Tensor | None = None,
        memory_BSD: Tensor | None = None,
        cache: KVCache | None = None,
        align: Alignment | None = None,
    ) -> Tensor:
        """Attend from x to itself, or to the memory in a cross attention.

        Args:
            x_BTD: Input.
            mask: Keys that each query may attend to.
            rotary: Rows of the rotary table for x's positions.
            relative_TS: Rows of the table of distances or buckets, see `relative_index`.
            memory_BSD: Encoder output; a cross attention needs it unless the cache has its keys and values.
            cache: Keys and values of earlier calls; those of this call are added.
            align: Receives the attention weights.

        Returns:
            (B, T, D).
        """
        q_BTNH = self._heads(self.q_proj(x_BTD), self.q_norm)
        if rotary is not None and not self.cross:
            q_BTNH = rotate(q_BTNH, rotary)
        k_BKSH, v_BKSH = self._memory(memory_BSD, cache) if self.cross else self._own(x_BTD, rotary, cache)
        dropout = self.dropout if self.training else 0.0
        rows, memories = x_BTD.shape[0], k_BKSH.shape[0]
        if self.cross and rows != memories:
            # Neighbouring rows that share a memory, such as the beams of one source, become queries of one product.
            q_BTNH = q_BTNH.unflatten(0, (memories, -1)).flatten(1, 2)
        q_BNTH = q_BTNH.transpose(1, 2)
        if self.relative_bias is not None:
            assert relative_TS is not None
            mask = mask.plus(relative_bias(self.relative_bias, relative_TS))
        if self.embed_relative is not None:
            assert relative_TS is not None
            relative = RelativeVectors(self.embed_relative.weight, relative_TS)
            out_BNTH = attend_relative(q_BNTH, k_BKSH, v_BKSH, mask, relative, self.scale, dropout)
        elif self.sinks is not None:
            out_BNTH = attend_with_sinks(q_BNTH, k_BKSH, v_BKSH, mask, self.sinks, self.scale, dropout)
        else:
            out_BNTH = attend(q_BNTH, k_BKSH, v_BKSH, mask, self.scale, dropout, self.softcap)
        if align is not None:
            heads = align.heads or q_BNTH.shape[1]
            weights_BTS = attention_weights(q_BNTH, k_BKSH, mask, self.scale, self.softcap)[:, :heads].mean(dim=1)
            align.weights_BTS = weights_BTS.reshape(rows, -1, weights_BTS.shape[-1])
        return self.o_proj(out_BNTH.transpose(1, 2).reshape(*x_BTD.shape[:2], -1))

    def _heads(self, x_BTX: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is not None and not self.norm_heads:
            x_BTX, norm = norm(x_BTX), None
        x_BTNH = x_BTX.unflatten(-1, (-1, self.head_size))
        return x_BTNH if norm is None else norm(x_BTNH)

    def _project(self, x_BSD: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor]:
        k_BSKH = self._heads(self.k_proj(x_BSD), self.k_norm)
        if rotary is not None:
            k_BSKH = rotate(k_BSKH, rotary)
        return k_BSKH.transpose(1, 2), self._heads(self.v_proj(x_BSD), None).transpose(1, 2)

    def _own(self, x_BTD: Tensor, rotary: Tensor | None, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        k_BKTH, v_BKTH = self._project(x_BTD, rotary)
        return (k_BKTH, v_BKTH) if cache is None else cache.append(self.layer, k_BKTH, v_BKTH)

    def _memory(self, memory_BSD: Tensor | None, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        cached = cache.cross(self.layer) if cache is not None else None
        if cached is not None:
            return cached
        assert memory_BSD is not None, "cross attention needs the encoder's output, or a cache that has seen it"
        k_BKSH, v_BKSH = self._project(memory_BSD, None)
        if cache is not None:
            cache.set_cross(self.layer, k_BKSH, v_BKSH)
        return k_BKSH, v_BKSH


def attend(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    mask: Mask,
    scale: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """softmax(scale q k' + mask) v, by the fastest kernel of the device; returns (B, N, T, H).

    Each group of N / K query heads shares a key head. The default scale is 1 / sqrt(H). A soft cap of the scores
    materialises all weights.
    """
    if q_BNTH.shape[2] == 1 and q_BNTH.shape[1] != k_BKSH.shape[1] and softcap is None:
        return _attend_one(q_BNTH, k_BKSH, v_BKSH, mask, scale, dropout)
    dtype = _result_dtype(q_BNTH)
    compute = _compute_dtype(q_BNTH.device.type, dtype)
    q, k, v = q_BNTH.to(compute), k_BKSH.to(compute), v_BKSH.to(compute)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if softcap is not None:
        return attend_plain(q, k, v, mask, factor, dropout, softcap).to(dtype)
    if q.device.type != "cpu":
        return _attend_on_gpu(q, k, v, mask, scale, dropout).to(dtype)
    if dropout > 0.0 and mask.is_trained:
        return attend_plain(q, k, v, mask, factor, dropout).to(dtype)
    out = attend_on_cpu(q, k, v, mask, factor, dropout)
    return (_attend_by_torch(q, k, v, mask, scale, dropout) if out is None else out).to(dtype)


def attend_with_sinks(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, sinks_N: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """`attend` with one more score for each head in the softmax, its sink, whose value is zero."""
    length, size = q_BNTH.shape[2:]
    if length == 1 and dropout == 0.0:
        return attend_one_with_sinks(q_BNTH, k_BKSH, v_BKSH, mask, sinks_N, scale)
    q, k, v, mask = with_sink_key(q_BNTH, k_BKSH, v_BKSH, mask, sinks_N, scale)
    return attend(q, k, v, mask, scale, dropout)[:, :, -length:, :size]


def attend_plain(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    mask: Mask,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """`attend` with all weights materialised, as a reference, and where the mask needs a gradient or scores a cap."""
    weights_BNTS = attention_weights(q_BNTH, k_BKSH, mask, scale, softcap).to(q_BNTH.dtype)
    weights_BNTS = drop(weights_BNTS, dropout, dropout > 0)
    return weights_BNTS @ _repeat_heads(v_BKSH, q_BNTH.shape[1])


def attend_relative(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    mask: Mask,
    relative: RelativeVectors,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` with a vector per distance added to keys and values (Shaw et al. 2018, equations 3 and 4).

    Queries are multiplied with all R vectors at once and the scores gathered by distance, instead of building a key for
    every pair of positions: three times as fast on CPU, with T times less memory.
    """
    scores_BNTS = _scores(q_BNTH, k_BKSH, scale)
    index = relative.index_TS.expand(*scores_BNTS.shape)
    by_distance_BNTR = (scale * q_BNTH) @ relative.table_RH.to(q_BNTH.dtype).T
    scores_BNTS = scores_BNTS + by_distance_BNTR.gather(-1, index).float()
    weights_BNTS = drop(_softmax(scores_BNTS, mask), dropout, dropout > 0).to(v_BKSH.dtype)
    out_BNTH = weights_BNTS @ _repeat_heads(v_BKSH, q_BNTH.shape[1])
    by_distance_BNTR = torch.zeros_like(by_distance_BNTR).scatter_add(-1, index, weights_BNTS)
    return out_BNTH + by_distance_BNTR @ relative.table_RH.to(v_BKSH.dtype)


def attention_weights(q_BNTH: Tensor, k_BKSH: Tensor, mask: Mask, scale: float, softcap: float | None = None) -> Tensor:
    """softmax(scale q k' + mask), (B, N, T, S) in float32, which `attend` does not materialise."""
    return _softmax(capped(_scores(q_BNTH, k_BKSH, scale), softcap), mask)


def _scores(q_BNTH: Tensor, k_BKSH: Tensor, scale: float) -> Tensor:
    return ((scale * q_BNTH) @ _repeat_heads(k_BKSH, q_BNTH.shape[1]).transpose(-1, -2)).float()


def _softmax(scores_BNTS: Tensor, mask: Mask) -> Tensor:
    bias = mask.as_float(*scores_BNTS.shape[2:])
    return (scores_BNTS if bias is None else scores_BNTS + bias).softmax(dim=-1)


def _repeat_heads(x_BKSH: Tensor, heads: int) -> Tensor:
    return x_BKSH if x_BKSH.shape[1] == heads else x_BKSH.repeat_interleave(heads // x_BKSH.shape[1], dim=1)


def attend_on_cpu(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, scale: float, dropout: float
) -> Tensor | None:
    """softmax(scale q k' + mask) v, (B, N, T, H), by our kernels; None if none of them beats torch's.

    Dropout of the weights has a kernel; so have causal masks in bf16, of packed documents and of sliding windows, and
    a few queries in bf16.
    """
    if dropout > 0.0:
        bias = mask.as_float(q_BNTH.shape[2], k_BKSH.shape[2])
        return attend_with_dropout(q_BNTH, k_BKSH, v_BKSH, bias, scale, dropout)
    if mask.causal and (q_BNTH.dtype == torch.bfloat16 or mask.first_BT is not None):
        return _attend_tiled(q_BNTH, k_BKSH, v_BKSH, mask, scale)
    if not mask.causal and not torch.is_grad_enabled() and are_few(q_BNTH, k_BKSH):
        return attend_few(q_BNTH, k_BKSH, v_BKSH, mask.as_float(q_BNTH.shape[2], k_BKSH.shape[2]), scale)
    return None


@uncompiled
def _attend_tiled(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, scale: float) -> Tensor:
    """Tiles are faster than the code that torch.compile generates for attention, so this breaks its graph."""
    by_torch = mask.first_BT is None and torch_is_faster(q_BNTH.dtype)
    return attend_tiled(q_BNTH, k_BKSH, v_BKSH, mask_tiles(mask, q_BNTH, k_BKSH), scale, forward_by_torch=by_torch)


def _attend_on_gpu(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, scale: float | None, dropout: float
) -> Tensor:
    bias = _materialized(mask)
    if bias is None:
        return _attend_by_torch(q_BNTH, k_BKSH, v_BKSH, mask, scale, dropout)
    bias = bias if bias.dtype == torch.bool else bias.to(q_BNTH.dtype)
    # CUDA's kernels that take a mask do not support groups.
    k_BNSH, v_BNSH = (_repeat_heads(x, q_BNTH.shape[1]) for x in (k_BKSH, v_BKSH))
    return _attend_by_torch(q_BNTH, k_BNSH, v_BNSH, Mask(bias), scale, dropout)


def _attend_by_torch(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, scale: float | None, dropout: float
) -> Tensor:
    bias = _materialized(mask)
    return F.scaled_dot_product_attention(
        q_BNTH,
        k_BKSH,
        v_BKSH,
        attn_mask=bias,
        dropout_p=dropout,
        is_causal=mask.causal and bias is None,
        enable_gqa=q_BNTH.shape[1] != k_BKSH.shape[1],
        scale=scale,
    )


def _materialized(mask: Mask) -> Tensor | None:
    return mask.materialize() if torch.compiler.is_compiling() else mask.materialized


def _attend_one(
    q_BN1H: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, scale: float | None, dropout: float
) -> Tensor:
    """One query per head: the queries of a group become the rows of one product with their shared keys.

    On CPU this is 1.7 (float32) to 8 times (bf16) as fast as the kernel's own grouping.
    """
    batch, heads, _, size = q_BN1H.shape
    kv_heads = k_BKSH.shape[1]
    bias = mask.bias
    if bias is not None:
        if bias.shape[1] == heads:
            bias = bias.reshape(bias.shape[0], kv_heads, heads // kv_heads, bias.shape[-1])
        if bias.dtype != torch.bool and bias.device.type != "cpu":
            bias = bias.to(q_BN1H.dtype)
    q_BKGH = q_BN1H.reshape(batch, kv_heads, heads // kv_heads, size)
    out_BKGH = F.scaled_dot_product_attention(q_BKGH, k_BKSH, v_BKSH, attn_mask=bias, dropout_p=dropout, scale=scale)
    return out_BKGH.reshape(batch, heads, 1, size)


def _result_dtype(q_BNTH: Tensor) -> torch.dtype:
    device_type = q_BNTH.device.type
    autocast = device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if autocast else q_BNTH.dtype


def _compute_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """float32 on CPUs that only emulate bf16: attention's backward is three times as fast there, and more exact."""
    emulated = device_type == "cpu" and dtype == torch.bfloat16 and not _CPU_HAS_BF16
    return torch.float32 if emulated else dtype
