"""Bans, penalties and sampling: pure functions on the logits of the next token.

Shapes: R = rows (hypotheses that are being decoded), V = vocabulary. No function changes its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BANNED = float("-inf")
_CHUNK = 64
"""Tokens of a chunk of the vocabulary, of which `top_k` first computes only the maximum."""


def ban(logits_RV: Tensor, ids: Sequence[int]) -> Tensor:
    """Make the tokens `ids` impossible in every row."""
    if not ids:
        return logits_RV
    logits_RV = logits_RV.clone()
    logits_RV[:, list(ids)] = BANNED
    return logits_RV


def ban_in_rows(logits_RV: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
    """Make the tokens `ids[r]` impossible in row r."""
    rows = [row for row, banned in enumerate(ids) for _ in banned]
    if not rows:
        return logits_RV
    logits_RV = logits_RV.clone()
    logits_RV[rows, [token for banned in ids for token in banned]] = BANNED
    return logits_RV


def repeated_ngram_ends(tokens: Sequence[int], n: int, *, exempt: frozenset[int] = frozenset()) -> list[int]:
    """Tokens that would complete an n-gram that `tokens` already contains, unless one of its tokens is `exempt`."""
    if n < 1 or len(tokens) < n:
        return []
    start = tuple(tokens[len(tokens) - n + 1 :])
    if exempt.intersection(start):
        return []
    ends = {tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tuple(tokens[i : i + n - 1]) == start}
    return sorted(ends - exempt)


def top_k(scores_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, or all if there are fewer: values and indices, best first.

    The k best are in the k chunks with the best maxima, which is much less to sort than the whole vocabulary.
    """
    rows, vocab = scores_RV.shape
    chunks = vocab // _CHUNK
    if chunks < 2 * k:
        return scores_RV.topk(min(k, vocab), dim=-1)
    chunks_RGC = scores_RV[:, : chunks * _CHUNK].unflatten(1, (chunks, _CHUNK))
    best_RK = chunks_RGC.amax(dim=-1).topk(k, dim=-1).indices
    inside_RKC = chunks_RGC.gather(1, best_RK[:, :, None].expand(-1, -1, _CHUNK))
    ids_RKC = best_RK[:, :, None] * _CHUNK + torch.arange(_CHUNK, device=scores_RV.device)
    rest_T = torch.arange(chunks * _CHUNK, vocab, device=scores_RV.device)
    values_RC = torch.cat([inside_RKC.flatten(1), scores_RV[:, chunks * _CHUNK :]], dim=1)
    ids_RC = torch.cat([ids_RKC.flatten(1), rest_T.expand(rows, -1)], dim=1)
    values_RK, places_RK = values_RC.topk(k, dim=-1)
    return values_RK, ids_RC.gather(1, places_RK)


def penalize_repetition(logits_RV: Tensor, histories: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of tokens in `histories[r]` by `penalty` (Keskar et al. 2019)."""
    if penalty == 1.0 or not any(histories):
        return logits_RV
    logits_RV = logits_RV.clone()
    for row, history in enumerate(histories):
        seen = sorted(set(history))
        values = logits_RV[row, seen]
        logits_RV[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
    return logits_RV


def keep_top_k(logits_RV: Tensor, k: int) -> Tensor:
    """Ban all but the k best tokens of each row (and those that tie with the k-th); k < 1 keeps all."""
    if k < 1 or k >= logits_RV.size(-1):
        return logits_RV
    worst_R1 = logits_RV.topk(k, dim=-1).values[:, -1:]
    return logits_RV.masked_fill(logits_RV < worst_R1, BANNED)


def keep_top_p(logits_RV: Tensor, p: float) -> Tensor:
    """Ban all but the fewest tokens whose probabilities sum to p (Holtzman et al. 2020); 0 and 1 keep all."""
    if p <= 0.0 or p >= 1.0:
        return logits_RV
    sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True)
    before_RV = sorted_RV.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
    before_RV[:, 0] = 0.0
    banned_RV = torch.empty_like(before_RV, dtype=torch.bool).scatter_(-1, order_RV, before_RV >= p)
    return logits_RV.masked_fill(banned_RV, BANNED)


def sharpen(logits_RV: Tensor, temperature: float) -> Tensor:
    """Divide the logits by `temperature` (> 0)."""
    return logits_RV if temperature == 1.0 else logits_RV / temperature


def draw(logits_RV: Tensor, uniforms: Sequence[float]) -> list[int]:
    """Draw one token per row from softmax(logits), row r with the number `uniforms[r]` in [0, 1).

    Each row uses only its own random number, so its token does not depend on other rows. The cumulative sum is in
    double precision: in float32 the last of 100,000 tokens could become unreachable.
    """
    cumulative_RV = logits_RV.double().softmax(dim=-1).cumsum(dim=-1)
    targets_R1 = torch.tensor(uniforms, dtype=torch.float64, device=logits_RV.device)[:, None] * cumulative_RV[:, -1:]
    ids_R = torch.searchsorted(cumulative_RV, targets_R1, right=True)[:, 0].clamp(max=logits_RV.size(-1) - 1)
    return [int(i) for i in ids_R.tolist()]
