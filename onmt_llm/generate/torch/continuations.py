"""Scores of continuations of many contexts: what several of them begin with is read once.

The sequences to read (context and continuation, without the last token) are sorted, so that those with a common
beginning are neighbours. The beginning goes into a KV cache, from which they go on; what has nothing more in common is
read as a batch.

Shapes: M models, B sequences, T positions, N scored positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor

from onmt_llm.generate.engine import ContinuationScore
from onmt_llm.generate.lengths import make_batches
from onmt_llm.generate.torch.ensemble import Ensemble
from onmt_llm.generate.torch.prefill import is_separable
from onmt_llm.generate.torch.prefix import common_length
from onmt_llm.nn.kv_cache import KVCache

_WORTH = 64
"""Tokens that a common beginning must save to be given a cache of its own."""
_CACHE_BYTES = 1 << 28
"""Bytes of the copies of a beginning's keys and values in one batch."""
TokenIds = tuple[int, ...]
_Batch = tuple[int, Sequence[TokenIds], list[Tensor]]
"""Tokens that were known, whole sequences, and each model's hidden states (B, T, D) of the other tokens."""


@dataclass(frozen=True)
class _Request:
    """One continuation: its place among all, the first position that predicts it, and its tokens."""

    place: int
    start: int
    targets: TokenIds


class ContinuationScorer:
    """Scores continuations with one model or an ensemble of decoder-only models.

    Args:
        ensemble: The models.
        contexts: Token ids, at least one each.
        continuations: Token ids of the continuation of each context, at least one each.
        batch_tokens: Positions, padding included, of a batch.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        contexts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        batch_tokens: int,
    ) -> None:
        self._ensemble = ensemble
        self._batch_tokens = batch_tokens
        self._count = len(contexts)
        self._requests: dict[TokenIds, list[_Request]] = {}
        for place, (context, targets) in enumerate(zip(contexts, continuations, strict=True)):
            request = _Request(place, len(context) - 1, tuple(targets))
            self._requests.setdefault((*context, *targets[:-1]), []).append(request)

    @torch.inference_mode()
    def score(self) -> list[ContinuationScore]:
        """The score of each continuation of its context."""
        config = self._ensemble.config
        together = sorted(row for row in self._requests if is_separable(config, len(row)))
        apart = [row for row in self._requests if not is_separable(config, len(row))]
        found: dict[int, ContinuationScore] = {}
        for known, rows, hidden_MBTD in chain(self._batches(apart, 0, ()), self._walk(together, 0, ())):
            found |= self._scores(known, [self._requests[row] for row in rows], hidden_MBTD)
        return [found[place] for place in range(self._count)]

    def _walk(self, rows: Sequence[TokenIds], known: int, caches: Sequence[KVCache]) -> Iterator[_Batch]:
        """Hidden states of sorted sequences whose first `known` tokens are in `caches`."""
        alone: list[TokenIds] = []
        groups = [(rows, known)]
        while groups:
            group, depth = groups.pop()
            for part in _parts(group, depth):
                common = self._common(part)
                if len(part) > 1 and (len(part) - 1) * (common - known) >= _WORTH:
                    yield from self._walk(part, common, self._extended(caches, known, part[0][:common]))
                elif len(part) > 1 and common > depth:
                    groups.append((part, common))  # some of them may have more in common
                else:
                    alone += part
        yield from self._batches(alone, known, caches)

    def _common(self, rows: Sequence[TokenIds]) -> int:
        """Tokens with which sorted sequences begin, up to the last one of the shortest context, which is to be read."""
        least = min(request.start for row in rows for request in self._requests[row])
        return min(common_length(rows[0], rows[-1]), least)

    def _extended(self, caches: Sequence[KVCache], known: int, ids: TokenIds) -> list[KVCache]:
        """New caches of `ids`, of which the first `known` tokens are in `caches`."""
        longer = [cache.copy(known, capacity=len(ids)) for cache in caches]
        longer = longer or self._ensemble.empty_caches(capacity=len(ids))
        self._ensemble.extend(longer, ids[known:])
        return longer

    def _batches(self, rows: Sequence[TokenIds], known: int, caches: Sequence[KVCache]) -> Iterator[_Batch]:
        """Hidden states of sequences after the first `known` tokens, batch by batch."""
        lengths = [len(row) - known for row in rows]
        for batch in make_batches(lengths, batch_size=self._batch_tokens, batch_type="tokens"):
            for part in self._fitting(batch, lengths[batch[0]] + known, bool(caches)):
                chosen = [rows[place] for place in part]
                yield known, chosen, self._ensemble.continued(caches, known, [row[known:] for row in chosen])

    def _fitting(self, batch: Sequence[int], length: int, has_caches: bool) -> Iterator[Sequence[int]]:
        """Parts of a batch for which the copies of a cache fit into `_CACHE_BYTES`."""
        rows = len(batch)
        if has_caches:
            rows = max(1, _CACHE_BYTES // (length * self._ensemble.bytes_per_token))
        yield from (batch[start : start + rows] for start in range(0, len(batch), rows))

    def _scores(
        self, known: int, requests: Sequence[Sequence[_Request]], hidden_MBTD: Sequence[Tensor]
    ) -> dict[int, ContinuationScore]:
        """Scores by place, of the requests of each row."""
        flat = [(row, request) for row, each in enumerate(requests) for request in each]
        rows = [row for row, request in flat for _ in request.targets]
        columns = [request.start - known + n for _, request in flat for n in range(len(request.targets))]
        targets = [token for _, request in flat for token in request.targets]
        hidden_MND = [hidden_BTD[rows, columns] for hidden_BTD in hidden_MBTD]
        log_probs, greedy = self._ensemble.token_scores(hidden_MND, targets)
        found, start = {}, 0
        for _, request in flat:
            end = start + len(request.targets)
            found[request.place] = ContinuationScore(
                sum(log_probs[start:end]), len(request.targets), all(greedy[start:end])
            )
            start = end
        return found


def _parts(rows: Sequence[TokenIds], depth: int) -> Iterator[list[TokenIds]]:
    """Sorted sequences that agree in their first `depth` tokens, divided by the next one."""
    for _, part in groupby(rows, key=lambda row: row[depth : depth + 1]):
        yield list(part)
