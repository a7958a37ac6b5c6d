"""Beam search with the hypotheses and scores of OpenNMT-py.

Shapes: B = prompts still being searched, K = beams of a prompt, R = B * K rows, C = candidates, N = tokens so far, S =
    source length, V = vocabulary.

Each step selects a prompt's K best continuations. Those that end are stored, and their beams are free for the next
step's continuations of the others. A score is the sum of the model's log probabilities over all tokens but the start
token, divided by the current length penalty, minus the coverage penalty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.lengths import length_penalty
from onmt_llm.generate.search.sampling import Constraints, DecodingRow, top_k
from onmt_llm.generate.search.state import Decoding


@dataclass
class _FinishedHypotheses:
    """Finished hypotheses of one prompt."""

    ended: list[tuple[float, DecodingRow]] = field(default_factory=list)
    best_per_token: float = -math.inf


def beam_search(
    decoding: Decoding,
    *,
    options: GenerationConfig,
    constraints: Constraints,
    at_stop: Callable[[list[int]], bool] | None = None,
) -> list[list[tuple[float, DecodingRow]]]:
    """Search the best answers to the prompts of a batch.

    Args:
        decoding: The batch, one row per prompt.
        options: How to search.
        constraints: Allowed tokens and lengths.
        at_stop: Tests whether tokens end with a stop string.

    Returns:
        For each prompt up to `n_best` pairs of score and finished row, best first.
    """
    search = BeamSearch(decoding, options=options, constraints=constraints, at_stop=at_stop)
    while search.prompts:
        search.step()
    return [search.best(prompt) for prompt in range(len(decoding.source_lengths))]


class BeamSearch:
    """A search that is done step by step; its arguments are those of `beam_search`.

    Attributes:
        prompts: The B prompts that are still being searched.
        tokens_RN: Tokens of each hypothesis.
        log_probs_BK: Sums of log probabilities; -inf = the hypothesis has ended, or the beam was never used.
    """

    def __init__(
        self,
        decoding: Decoding,
        *,
        options: GenerationConfig,
        constraints: Constraints,
        at_stop: Callable[[list[int]], bool] | None = None,
    ) -> None:
        num_prompts = len(decoding.source_lengths)
        self.decoding, self.options, self.constraints, self.at_stop = decoding, options, constraints, at_stop
        self.length_penalty = length_penalty(options)
        self.found = [_FinishedHypotheses() for _ in range(num_prompts)]
        self.prompts = list(range(num_prompts))
        self._dropped: set[int] = set()
        self.tokens_RN = torch.zeros(num_prompts, 0, dtype=torch.long, device=decoding.device)
        self.log_probs_BK = torch.zeros(num_prompts, 1, device=decoding.device)
        self.end_ids = torch.tensor(constraints.end_ids, dtype=torch.long, device=decoding.device)
        self.coverage: _Coverage | None = None
        penalty = coverage_penalty(options)
        if penalty is not None:
            self.coverage = _Coverage(penalty, real_tokens(decoding.source_lengths, decoding.device))

    def step(self) -> list[int]:
        """Extend all hypotheses by one token; returns the prompts whose search is now over, which leave `prompts`."""
        if self.coverage is not None:
            assert self.decoding.attention_RS is not None, "a coverage penalty needs a decoding with attention"
            penalty_BK = self.coverage.add(self.decoding.attention_RS, self.log_probs_BK.shape)
            if self.options.stepwise_penalty:
                self.log_probs_BK = self.log_probs_BK - penalty_BK
        rows_BK = self._extend()
        prompts, kept = self.prompts, self._store_ended(self._ended())
        self._keep([place for place in kept if prompts[place] not in self._dropped], rows_BK)
        return [prompt for place, prompt in enumerate(prompts) if place not in kept]

    def drop(self, prompt: int) -> None:
        """End the search of a prompt at the next step, before the model computes anything more for it."""
        self._dropped.add(prompt)

    def best(self, prompt: int) -> list[tuple[float, DecodingRow]]:
        """The best finished answers to a prompt: up to `n_best` pairs of score and row, best first."""
        return sorted(self.found[prompt].ended, key=lambda item: -item[0])[: self.options.n_best]

    def _extend(self) -> Tensor:
        """Replace the hypotheses by their best continuations; returns the row that each continues, (B, K)."""
        size, length = self.log_probs_BK.shape[1], self.tokens_RN.shape[1]
        owners = [prompt for prompt in self.prompts for _ in range(size)]
        logits_RV = self.constraints.distribution(self.decoding.logits_RV, self.tokens_RN.tolist)
        # On a CPU log_softmax takes half the time of logsumexp.
        values_RC, ids_RC = self._candidates(logits_RV.log_softmax(dim=-1), owners, length)
        sums_BC = (values_RC + self.log_probs_BK.reshape(-1, 1)).view(len(self.prompts), -1)
        self.log_probs_BK, places_BK = sums_BC.topk(min(self.options.beam_size, sums_BC.shape[1]), dim=-1)
        first_row_B1 = torch.arange(len(self.prompts), device=places_BK.device)[:, None] * size
        rows_BK = places_BK // values_RC.shape[1] + first_row_B1
        new_BK = ids_RC.view(len(self.prompts), -1).gather(1, places_BK)
        self.tokens_RN = torch.cat([self.tokens_RN[rows_BK.flatten()], new_BK.view(-1, 1)], dim=1)
        if self.coverage is not None:
            self.coverage.reorder(rows_BK.flatten())
        return rows_BK

    def _candidates(self, log_probs_RV: Tensor, owners: list[int], length: int) -> tuple[Tensor, Tensor]:
        """Each row's best next tokens: their log probabilities and ids."""
        allowed_RV = self.constraints.ban(log_probs_RV, owners, [length] * len(owners), self.tokens_RN.tolist)
        values_RC, ids_RC = top_k(allowed_RV, self.options.beam_size)
        forced = self.constraints.forced(owners, [length] * len(owners))
        for row in [row for row, token in enumerate(forced) if token >= 0]:
            values_RC[row] = -math.inf
            values_RC[row, 0], ids_RC[row, 0] = log_probs_RV[row, forced[row]], forced[row]
        return values_RC, ids_RC

    def _ended(self) -> list[list[str | None]]:
        """Why each beam ends now, or None; unused beams (-inf) do not end."""
        shape, length = self.log_probs_BK.shape, self.tokens_RN.shape[1]
        at_end = torch.isin(self.tokens_RN[:, -1], self.end_ids).view(shape).tolist()
        forced = [length <= len(self.constraints.prefix(prompt)) for prompt in self.prompts]
        at_limit = [length >= self.constraints.limit(prompt) for prompt in self.prompts]
        result: list[list[str | None]] = []
        at_stop = self.at_stop
        histories = self.tokens_RN.view(*shape, length).tolist() if at_stop else []
        for place, ends in enumerate(at_end):
            stops = [end and not forced[place] for end in ends]
            if at_stop is not None and not forced[place]:
                stops = [stop or at_stop(tokens) for stop, tokens in zip(stops, histories[place], strict=True)]
            result.append(["stop" if stop else "length" if at_limit[place] else None for stop in stops])
        return result

    def _store_ended(self, ended: list[list[str | None]]) -> list[int]:
        """Store ended hypotheses and free their beams; returns the places of the prompts whose search continues."""
        touched = [place for place, reasons in enumerate(ended) if any(reasons)]
        if not touched:
            return list(range(len(self.prompts)))
        length = self.tokens_RN.shape[1]
        scores_BK = self.log_probs_BK / self.length_penalty(length)
        log_probs = self.log_probs_BK.tolist()
        if self.coverage is not None and not self.options.stepwise_penalty:
            scores_BK = scores_BK - self.coverage.penalty_BK(self.log_probs_BK.shape)
        scores, tokens = scores_BK.tolist(), self.tokens_RN.view(*self.log_probs_BK.shape, length)
        over = set()
        for place in touched:
            found = self.found[self.prompts[place]]
            for beam, reason in enumerate(ended[place]):
                if reason is None or log_probs[place][beam] == -math.inf:
                    continue
                row = DecodingRow(self.prompts[place], tokens[place, beam].tolist(), log_probs[place][beam])
                row.finish = "stop" if reason == "stop" else "length"
                found.ended.append((scores[place][beam], row))
                # Here OpenNMT-py's length counts the start token and one more.
                found.best_per_token = max(found.best_per_token, scores[place][beam] / (length + 2))
                log_probs[place][beam] = -math.inf
            if max(log_probs[place]) == -math.inf or self._is_over(place, ended[place][0], scores[place][0]):
                over.add(place)
        self.log_probs_BK = torch.tensor(log_probs, device=self.log_probs_BK.device)
        return [place for place in range(len(self.prompts)) if place not in over]

    def _is_over(self, place: int, best_ended: str | None, best: float) -> bool:
        """Whether the search ends although some beams are alive, by the step's best continuation.

        There are `n_best` hypotheses, and with a ratio of 0 the best continuation has ended; with one above 0, its
        score divided by ratio * source length is no better than an ended hypothesis' score divided by its length.
        """
        found = self.found[self.prompts[place]]
        if len(found.ended) < self.options.n_best:
            return False
        if self.options.ratio <= 0:
            return best_ended is not None
        source_length = self.decoding.source_lengths[self.prompts[place]]
        if self.decoding.is_decoder_only:
            source_length += self.tokens_RN.shape[1]
        return best / (source_length * self.options.ratio) <= found.best_per_token

    def _keep(self, kept: list[int], rows_BK: Tensor) -> None:
        """Continue with the prompts at these places: reorder the model's state to match the hypotheses."""
        if len(kept) < len(self.prompts):
            kept_B = torch.tensor(kept, dtype=torch.long, device=rows_BK.device)
            self.prompts = [self.prompts[place] for place in kept]
            size = rows_BK.shape[1]
            self.tokens_RN = self.tokens_RN.unflatten(0, (-1, size))[kept_B].flatten(0, 1)
            self.log_probs_BK, rows_BK = self.log_probs_BK[kept_B], rows_BK[kept_B]
            self.decoding.select_memories(kept_B)
            if self.coverage is not None:
                self.coverage.keep(kept_B, size)
        if kept:
            self.decoding.reorder(rows_BK.flatten())
            self.decoding.step(self.tokens_RN[:, -1])


def coverage_penalty(options: GenerationConfig) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Penalty of a score for source tokens with too little attention (`wu`) or too much (`summary`).

    Returns:
        A function of the sums of attention (..., S) and the mask of real source tokens (..., S); None for "none".
    """
    beta = options.beta
    if options.coverage_penalty == "none" or beta == 0:
        return None

    def wu(coverage: Tensor, real: Tensor) -> Tensor:
        # An attention of exactly 0 would be an infinite penalty, and NaN at the next step.
        return -beta * coverage.clamp(min=torch.finfo(coverage.dtype).tiny, max=1.0).log().masked_fill(~real, 0.0).sum(
            dim=-1
        )

    def summary(coverage: Tensor, real: Tensor) -> Tensor:
        return beta * (coverage.clamp(min=1.0) - 1.0).masked_fill(~real, 0.0).sum(dim=-1)

    return wu if options.coverage_penalty == "wu" else summary


def real_tokens(lengths: list[int], device: torch.device) -> Tensor:
    """(B, S): True where a source has a token."""
    return torch.arange(max(lengths), device=device)[None] < torch.tensor(lengths, device=device)[:, None]


class _Coverage:
    """Sum of the attention of each hypothesis to each source token."""

    def __init__(self, penalty: Callable[[Tensor, Tensor], Tensor], real_BS: Tensor) -> None:
        self._penalty = penalty
        self._real_BS = real_BS
        self._sum_RS: Tensor | None = None
        self._before_R: Tensor | None = None

    def add(self, attention_RS: Tensor, shape: torch.Size) -> Tensor:
        """Add a step's attention; returns the increase of the penalty, (B, K). That of the first step counts as 0."""
        self._sum_RS = attention_RS if self._sum_RS is None else self._sum_RS + attention_RS
        now_R = self._of(self._sum_RS)
        growth_R = torch.zeros_like(now_R) if self._before_R is None else now_R - self._before_R
        # The first step's penalty is therefore subtracted at the second step.
        self._before_R = torch.zeros_like(now_R) if self._before_R is None else now_R
        return growth_R.view(shape)

    def reorder(self, rows_R: Tensor) -> None:
        assert self._sum_RS is not None and self._before_R is not None
        self._sum_RS, self._before_R = self._sum_RS[rows_R], self._before_R[rows_R]

    def keep(self, kept_B: Tensor, size: int) -> None:
        assert self._sum_RS is not None and self._before_R is not None
        self._real_BS = self._real_BS[kept_B]
        self._sum_RS = self._sum_RS.unflatten(0, (-1, size))[kept_B].flatten(0, 1)
        self._before_R = self._before_R.unflatten(0, (-1, size))[kept_B].flatten()

    def penalty_BK(self, shape: torch.Size) -> Tensor:
        assert self._sum_RS is not None
        return self._of(self._sum_RS).view(shape)

    def _of(self, sum_RS: Tensor) -> Tensor:
        beams = sum_RS.shape[0] // self._real_BS.shape[0]
        return self._penalty(sum_RS, self._real_BS.repeat_interleave(beams, dim=0))
