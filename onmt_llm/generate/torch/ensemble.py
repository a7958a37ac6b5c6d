"""One model or an ensemble, run over given tokens: logits, log probabilities and alignments.

Shapes: M models, B sequences, T target positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onmt_llm.generate.search.state import Decoding, PromptIds, combine, encode_sources, pad_right
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.stack import beyond_table
from onmt_llm.text.features import split_features

if TYPE_CHECKING:
    from onmt_llm.nn.transformer import Transformer
    from onmt_llm.text.codec import Codec

_SCORE_ROWS = 512
"""Positions whose logits are in memory at once when a text is scored."""


class Ensemble:
    """Models of one kind and vocabulary that answer together.

    Args:
        models: In eval mode, on their device.
        codec: Their vocabulary.
        average_probabilities: Average probabilities instead of log probabilities.
        static_steps: See `Decoding`.
    """

    def __init__(
        self, models: Sequence[Transformer], codec: Codec, *, average_probabilities: bool, static_steps: bool = False
    ) -> None:
        self._models, self._codec = models, codec
        self._average_probabilities, self._static_steps = average_probabilities, static_steps
        self.config = models[0].config

    def with_codec(self, codec: Codec) -> Ensemble:
        """The same models with another codec."""
        ensemble = copy(self)
        ensemble._codec = codec
        return ensemble

    def prompt_ids(self, prompt: Sequence[str]) -> PromptIds:
        """A prompt as input of the models: token ids, or rows of token and feature ids."""
        if self.config.is_decoder_only:
            return self._codec.vocab.ids(prompt)
        vocabs = self._codec.feature_vocabs
        if not vocabs:
            return self._codec.src_vocab.ids(prompt)
        tokens, *columns = split_features(prompt, len(vocabs))
        ids = [vocab.ids(column) for vocab, column in zip(vocabs, columns, strict=True)]
        return list(zip(self._codec.src_vocab.ids(tokens), *ids, strict=True))

    @property
    def device(self) -> torch.device:
        return next(self._models[0].parameters()).device

    @property
    def bytes_per_token(self) -> int:
        """Memory of a token's keys and values in the decoders' self-attentions."""
        total = 0
        for model in self._models:
            config, size = model.config, next(model.parameters()).element_size()
            width = config.num_kv_heads * (config.size_per_head + config.value_size)
            total += config.decoder_layers * width * size
        return total

    def check_room(self, prompt: PromptIds, length: int) -> None:
        """Check that the model can read an answer of this length after its prompt.

        Raises:
            DataError: Its table of learned positions ends before.
        """
        length += len(prompt) if self.config.is_decoder_only else len(self._start_ids)
        if self.config.position == "learned" and length > self.config.max_position:
            raise beyond_table(self.config.max_position, length)

    @property
    def _start_ids(self) -> list[int]:
        """The tokens that the decoder is given first; a language model is given its prompt instead."""
        return [] if self.config.is_decoder_only else self._codec.vocab.ids(self._codec.start_tokens)

    def start(
        self, prompts: Sequence[PromptIds], *, attention: bool = False, caches: Sequence[KVCache] = ()
    ) -> Decoding:
        """Prefill: the state of a batch before its first new token; `attention` and `caches` as in `Decoding`."""
        return Decoding(
            self._models,
            prompts,
            start_ids=self._start_ids,
            average_probabilities=self._average_probabilities,
            attention=attention,
            caches=caches,
            static_steps=self._static_steps,
        )

    def empty_caches(self, *, capacity: int) -> list[KVCache]:
        """A cache for each model, with room for so many tokens."""
        return [KVCache(model.cache_layers, capacity=capacity) for model in self._models]

    def extend(self, caches: Sequence[KVCache], ids: PromptIds) -> list[Tensor]:
        """Read further tokens of one sequence into each model's cache; returns their hidden states (1, T, D)."""
        return [
            model.decode(torch.tensor([list(ids)], device=next(model.parameters()).device), cache=cache)
            for model, cache in zip(self._models, caches, strict=True)
        ]

    def continued(self, caches: Sequence[KVCache], known: int, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Hidden states (B, T, D) of each model of decoder-only rows.

        Args:
            caches: Each model's keys and values of what all rows begin with; unchanged. Empty = rows are whole.
            known: Tokens of the caches that are continued.
            rows: The further tokens of each row.
        """
        if not caches:
            return self.hidden(rows, None)
        result = []
        for model, cache in zip(self._models, caches, strict=True):
            ids_BT, _ = pad_right(rows, next(model.parameters()).device)
            copies = cache.copy(known, capacity=known + ids_BT.shape[1])
            copies.reorder(torch.zeros(len(rows), dtype=torch.long, device=ids_BT.device))
            result.append(model.decode(ids_BT, cache=copies))
        return result

    @torch.inference_mode()
    def hidden(self, targets: Sequence[Sequence[int]], sources: Sequence[Sequence[str]] | None) -> list[Tensor]:
        """Hidden states (B, T, D) of each model; `sources` are those of an encoder-decoder."""
        result = []
        for model in self._models:
            device = next(model.parameters()).device
            tgt_BT, _ = pad_right(targets, device)
            if sources is None:
                result.append(model.decode(tgt_BT))
            else:
                memory_BSD, mask_BS = encode_sources(model, [self.prompt_ids(source) for source in sources], device)
                result.append(model.decode(tgt_BT, memory_BSD, mask_BS))
        return result

    def logits(self, hidden_MTD: Sequence[Tensor]) -> Tensor:
        """(T, V) in float32, from the hidden states of each model; log probabilities if there are several."""
        logits = [model.logits(h_TD[None])[0].float() for model, h_TD in zip(self._models, hidden_MTD, strict=True)]
        return combine(logits, average_probabilities=self._average_probabilities)

    @torch.inference_mode()
    def token_scores(self, hidden_MTD: Sequence[Tensor], targets: Sequence[int]) -> tuple[list[float], list[bool]]:
        """Natural log of the probability of each target, and whether no other token is more likely."""
        result: list[float] = []
        greedy: list[bool] = []
        for start in range(0, len(targets), _SCORE_ROWS):
            log_probs_TV = self.logits([h_TD[start : start + _SCORE_ROWS] for h_TD in hidden_MTD]).log_softmax(dim=-1)
            wanted = torch.tensor(targets[start : start + _SCORE_ROWS], device=log_probs_TV.device)
            result += log_probs_TV.gather(1, wanted[:, None])[:, 0].tolist()
            greedy += (log_probs_TV.argmax(dim=-1) == wanted).tolist()
        return result, greedy

    def align(
        self,
        sources: Sequence[PromptIds],
        answers: Sequence[Sequence[str]],
        *,
        align: tuple[int, int],
        full_context: bool,
    ) -> list[list[int]]:
        """For each token of each answer, the place of the source token with the most attention.

        Args:
            sources: The source of each answer.
            answers: Their tokens.
            align: (layer, heads), see `Transformer.decode_with_alignment`.
            full_context: The layer's self-attention sees the whole answer.

        Returns:
            As many places per answer as the longest one has tokens, and one more.
        """
        start = self._start_ids
        weights = []
        for model in self._models:
            device = next(model.parameters()).device
            memory_BSD, mask_BS = encode_sources(model, sources, device)
            tgt_BT, real_BT = pad_right([[*start, *self._codec.vocab.ids(answer)] for answer in answers], device)
            real_BT = torch.ones_like(tgt_BT, dtype=torch.bool) if real_BT is None else real_BT
            _, weights_BTS = model.decode_with_alignment(
                tgt_BT, memory_BSD, mask_BS, align=align, full_context_BT=real_BT if full_context else None
            )
            weights.append(weights_BTS[:, len(start) - 1 :])
        return torch.stack(weights).mean(dim=0).argmax(dim=-1).tolist()
