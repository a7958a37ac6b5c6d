"""State of a batch during decoding: the models, their KV caches, and the logits of the next token.

Shapes: B = prompts, P = longest prompt, S = source length, R = rows (hypotheses that are alive), D = model width, V =
    vocabulary.

Prompts are padded on the left, so all rows grow at the same position. The cache masks the padding and counts positions
without it, which makes an answer independent of its neighbours. Finished rows leave the batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onmt_llm.generate.search.static_step import StaticSteps
from onmt_llm.nn.kv_cache import KVCache, join_padded

if TYPE_CHECKING:
    from onmt_llm.nn.transformer import Transformer

PromptIds = Sequence[int] | Sequence[tuple[int, ...]]
"""Token ids; for a model with source features, each with the ids of its features."""


class Decoding:
    """A batch of one model or of an ensemble.

    Args:
        models: Decoder-only (the prompts are continued) or encoder-decoder (the prompts are sources); all of one kind
            and one vocabulary. An ensemble averages the log probabilities of its models and renormalises them.
        prompts: Token ids, none empty.
        start_ids: First tokens of every target of an encoder-decoder model.
        average_probabilities: An ensemble averages probabilities instead.
        attention: Keep the cross attention to the source, for coverage penalties.
        caches: For one prompt of decoder-only models: each model's keys and values of its beginning, which is then not
            read again. At least its last token must be left to read.
        static_steps: Take steps of one token with `StaticSteps`, where the model allows it.

    Attributes:
        logits_RV: float32 logits of each row's next token.
        attention_RS: Weights of the last layer's first head at the newest token, 0 at padding, averaged over the
            models; if `attention` is set.
    """

    def __init__(
        self,
        models: Sequence[Transformer],
        prompts: Sequence[PromptIds],
        *,
        start_ids: Sequence[int] = (),
        average_probabilities: bool = False,
        attention: bool = False,
        caches: Sequence[KVCache] = (),
        static_steps: bool = False,
    ) -> None:
        self._average_probabilities = average_probabilities
        self._attention = attention
        kept: Sequence[KVCache | None] = caches or [None] * len(models)
        self._states = [
            _ModelState(model, prompts, start_ids, cache, static_steps=static_steps)
            for model, cache in zip(models, kept, strict=True)
        ]
        self.source_lengths = [len(prompt) for prompt in prompts]
        self.is_decoder_only = models[0].config.is_decoder_only
        self.attention_RS: Tensor | None = None
        self.logits_RV = self._read(None)[:, 0]

    @property
    def device(self) -> torch.device:
        return self.logits_RV.device

    @property
    def caches(self) -> list[KVCache]:
        """Keys and values of each model."""
        return [part.cache for part in self._states]

    def step(self, tokens: Sequence[int] | Tensor) -> None:
        """Append one token to every row."""
        self.logits_RV = self._read(torch.as_tensor(tokens, device=self.device)[:, None])[:, 0]

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Append several tokens to the only row; returns the logits after each of them, (T, V)."""
        logits_TV = self._read(torch.tensor([list(tokens)], device=self.device), count=len(tokens))[0]
        self.logits_RV = logits_TV[-1:]
        return logits_TV

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens of the only row, before a `step` or `extend`."""
        for part in self._states:
            part.trim(length)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be dropped or repeated. Each has its own memory."""
        idx_R = torch.tensor(rows, device=self.device, dtype=torch.long)
        self.select_memories(idx_R)
        self.reorder(idx_R)
        self.logits_RV = self.logits_RV[idx_R]

    def join(self, other: Decoding) -> None:
        """Add the rows of another decoding of the same models below; each row has its own memory in both."""
        for mine, theirs in zip(self._states, other._states, strict=True):
            mine.join(theirs)
        self.source_lengths = [*self.source_lengths, *other.source_lengths]
        self.logits_RV = torch.cat([self.logits_RV, other.logits_RV])
        if self.attention_RS is not None and other.attention_RS is not None:
            self.attention_RS = join_padded(self.attention_RS, other.attention_RS, dim=1)

    def drop_padding(self) -> None:
        """Free the memory of positions that are padding in every row."""
        for part in self._states:
            part.drop_padding()

    def reorder(self, rows_R: Tensor) -> None:
        """`select` directly before a `step`, for neighbouring rows that share the memory of their source."""
        for part in self._states:
            part.reorder(rows_R)

    def select_memories(self, prompts_B: Tensor) -> None:
        """Keep the memories of these sources; the rows must then be selected accordingly."""
        for part in self._states:
            part.select_memories(prompts_B)

    def _read(self, ids_RT: Tensor | None, *, count: int = 1) -> Tensor:
        """Logits after each of the last `count` tokens, (R, count, V)."""
        logits, weights = zip(*(part.read(ids_RT, count, self._attention) for part in self._states), strict=True)
        if self._attention:
            self.attention_RS = torch.stack(weights).mean(dim=0)
        return combine(logits, average_probabilities=self._average_probabilities)


def combine(logits: Sequence[Tensor], *, average_probabilities: bool) -> Tensor:
    """Prediction of an ensemble, (..., V): the mean of its probabilities or of its log probabilities."""
    if len(logits) == 1:
        return logits[0]
    log_probs = torch.stack(list(logits)).log_softmax(dim=-1)
    return log_probs.logsumexp(dim=0) - math.log(len(logits)) if average_probabilities else log_probs.mean(dim=0)


class _ModelState:
    """One model of the batch."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[PromptIds],
        start_ids: Sequence[int],
        cache: KVCache | None = None,
        *,
        static_steps: bool = False,
    ) -> None:
        self._model = model
        self._static_steps = StaticSteps(model) if static_steps else None
        self._device = next(model.parameters()).device
        self._mask_BS: Tensor | None = None
        self._memory_BSD: Tensor | None = None
        left_pad_B: Tensor | None = None
        rope = model.config.rope
        self._original_context = rope.original_max_position if rope.scaling == "longrope" else None
        self._read_RT: Tensor | None = None
        if model.config.is_decoder_only:
            self._first_BP, left_pad_B = self._pad_left(prompts)
        else:
            assert start_ids, "an encoder-decoder model needs a start token"
            self._memory_BSD = self._encode(prompts)
            self._first_BP = torch.tensor([list(start_ids)] * len(prompts), device=self._device)
        self.cache = KVCache(model.cache_layers, left_pad_B=left_pad_B) if cache is None else cache
        if cache is not None:
            read_BT, self._first_BP = self._first_BP.tensor_split([cache.length], dim=1)
            self._read_RT = read_BT if self._original_context is not None else None

    def read(self, ids_RT: Tensor | None, count: int, attention: bool) -> tuple[Tensor, Tensor | None]:
        """Logits after each of the last `count` of these tokens (None = the prompts or start tokens), and the attention
        at the last one."""
        ids_RT = self._first_BP if ids_RT is None else ids_RT
        if self._original_context is not None and self._model.config.is_decoder_only:
            ids_RT = self._renewed(ids_RT, self._original_context)
        if self._static_steps is not None and ids_RT.shape[1] == 1 and not attention:
            logits_R1V = self._static_steps.logits(ids_RT, self.cache)
            if logits_R1V is not None:
                return logits_R1V, None
        # The memory is passed once: from then on the cache has its keys and values.
        memory_BSD, self._memory_BSD = self._memory_BSD, None
        weights_RS: Tensor | None = None
        if attention:
            last = (self._model.config.decoder_layers - 1, 1)
            hidden_RTD, weights_RTS = self._model.decode_with_alignment(
                ids_RT, memory_BSD, self._mask_BS, align=last, cache=self.cache
            )
            weights_RS = weights_RTS[:, -1]
        else:
            hidden_RTD = self._model.decode(ids_RT, memory_BSD, self._mask_BS, cache=self.cache)
        return self._model.logits(hidden_RTD[:, -count:]).float(), weights_RS

    def _renewed(self, ids_RT: Tensor, original_context: int) -> Tensor:
        """These tokens; or those of the whole rows, for an empty cache, when one grows beyond the original context:
        `longrope` then has other frequencies, with which its keys must be computed again (as Phi-3 of transformers)."""
        new = ids_RT.shape[1]
        self._read_RT = ids_RT if self._read_RT is None else torch.cat((self._read_RT, ids_RT), dim=1)
        pad_R = torch.zeros(1, device=self._device) if self.cache.left_pad_B is None else self.cache.left_pad_B
        length_R = self._read_RT.shape[1] - pad_R
        if not bool(((length_R > original_context) & (length_R - new <= original_context)).any()):
            return ids_RT
        self.cache = KVCache(self._model.cache_layers, left_pad_B=self.cache.left_pad_B)
        return self._read_RT

    def trim(self, length: int) -> None:
        self.cache.trim(length)
        if self._read_RT is not None:
            self._read_RT = self._read_RT[:, :length]

    def reorder(self, rows_R: Tensor) -> None:
        self.cache.reorder(rows_R, cross=False)
        if self._read_RT is not None:
            self._read_RT = self._read_RT[rows_R]

    def join(self, other: _ModelState) -> None:
        mine, theirs = self._memory_masks(), other._memory_masks()
        if mine is not None and theirs is not None:
            mask_BS = join_padded(mine, theirs, dim=1)
            self._mask_BS = None if bool(mask_BS.all()) else mask_BS
        if self._read_RT is not None and other._read_RT is not None:
            self._read_RT = join_padded(self._read_RT.flip(1), other._read_RT.flip(1), dim=1).flip(1)
        self.cache.join(other.cache)
        self._trim_read()

    def drop_padding(self) -> None:
        self.cache.drop_padding()
        self._trim_read()

    def _trim_read(self) -> None:
        if self._read_RT is not None:
            self._read_RT = self._read_RT[:, -self.cache.length :]

    def _memory_masks(self) -> Tensor | None:
        """(B, S): the real tokens of each memory; None = the model has no memories."""
        memory = self.cache.cross(0)
        if memory is None or self._mask_BS is not None:
            return self._mask_BS
        return memory[0].new_ones(memory[0].shape[0], memory[0].shape[2], dtype=torch.bool)

    def select_memories(self, idx_B: Tensor) -> None:
        self.cache.reorder_cross(idx_B)
        if self._mask_BS is not None:
            self._mask_BS = self._mask_BS[idx_B]

    def _pad_left(self, prompts: Sequence[PromptIds]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, prompts))
        left_pad = [longest - len(prompt) for prompt in prompts]
        ids = [[0] * pad + list(prompt) for pad, prompt in zip(left_pad, prompts, strict=True)]
        return torch.tensor(ids, device=self._device), torch.tensor(left_pad, device=self._device)

    def _encode(self, sources: Sequence[PromptIds]) -> Tensor:
        memory_BSD, self._mask_BS = encode_sources(self._model, sources, self._device)
        return memory_BSD


def encode_sources(
    model: Transformer, sources: Sequence[PromptIds], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Encoder output of sources, and the mask of their real tokens (None = all are)."""
    src, mask_BS = pad_right(sources, device)
    if not model.config.src_features:
        return model.encode(src, mask_BS), mask_BS
    return model.encode(src[..., 0], mask_BS, features_BSF=src[..., 1:]), mask_BS


def pad_right(rows: Sequence[PromptIds], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Padded token ids, and the mask of real ones (None = all are: no mask is faster than a trivial one)."""
    longest = max(map(len, rows))
    fill: Any = (0,) * len(rows[0][0]) if rows[0] and isinstance(rows[0][0], tuple) else 0
    ids_BS = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
    lengths_B1 = torch.tensor([[len(row)] for row in rows], device=device)
    mask_BS = torch.arange(longest, device=device)[None] < lengths_B1
    return ids_BS, None if min(map(len, rows)) == longest else mask_BS
