"""Greedy search and sampling: every row on its own. The beam search is in `beam.py`.

Shapes: R = rows (hypotheses that are alive), V = vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from onmt_llm.generate.engine import FinishReason
from onmt_llm.generate.search import sampling
from onmt_llm.generate.search.state import Decoding

Pick = Callable[[Tensor, Sequence["DecodingRow"]], "list[int]"]
Histories = Callable[[], Sequence[Sequence[int]]]


@dataclass
class DecodingRow:
    """One hypothesis.

    Attributes:
        prompt: Its prompt's place in the batch.
        tokens: What was produced so far, the end token included.
        log_prob: Sum of the tokens' log probabilities (repetition penalty included, bans and temperature not).
        random: Its own source of random numbers, where tokens are drawn.
        finish: Why it ended; None while it is alive. Whoever iterates over `sample` may set it.
    """

    prompt: int
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    random: Random | None = None
    finish: FinishReason | None = None


@dataclass(frozen=True)
class Constraints:
    """What may be produced at all.

    A ban takes a token out of the choice, not out of the distribution: the others keep the probability that the model
    gives them, as in OpenNMT-py.

    Attributes:
        end_ids: Tokens that end an answer.
        max_lengths: Tokens after which an answer of each prompt ends, beyond its prefix.
        absent_ids: Rows of the output layer that are no tokens; they have no part in the distribution.
        banned_ids: Tokens that are never produced.
        min_length: Tokens that an answer has at least before an end token, beyond its prefix.
        repetition_penalty: See `sampling.penalize_repetition`; tokens of the answer count, those of the prompt do not,
            as in CTranslate2.
        ngram: No n-gram of this length occurs twice in an answer; 0 = off.
        ngram_exempt: An n-gram that holds one of these tokens may occur again.
        prefixes: Tokens with which the answer of each prompt begins; none = no prefixes.
    """

    end_ids: tuple[int, ...]
    max_lengths: Sequence[int]
    absent_ids: tuple[int, ...] = ()
    banned_ids: tuple[int, ...] = ()
    min_length: int = 0
    repetition_penalty: float = 1.0
    ngram: int = 0
    ngram_exempt: frozenset[int] = frozenset()
    prefixes: Sequence[Sequence[int]] = ()

    def limit(self, prompt: int) -> int:
        """Tokens that an answer of a prompt has at most, its prefix included."""
        return self.max_lengths[prompt] + len(self.prefix(prompt))

    def prefix(self, prompt: int) -> Sequence[int]:
        return self.prefixes[prompt] if self.prefixes else ()

    def distribution(self, logits_RV: Tensor, histories: Histories) -> Tensor:
        """The logits of what the scores are measured by: with the repetition penalty, without what is no token."""
        if self.repetition_penalty != 1.0:
            logits_RV = sampling.penalize_repetition(logits_RV, histories(), self.repetition_penalty)
        return sampling.ban(logits_RV, self.absent_ids)

    def ban(self, scores_RV: Tensor, prompts: Sequence[int], length: int, histories: Histories) -> Tensor:
        """The scores with what is not allowed banned; a forced token is all that is allowed.

        Args:
            scores_RV: Logits or log probabilities of the next token.
            prompts: Which prompt each row belongs to.
            length: Tokens that every row has.
            histories: The rows' tokens, asked for only when they are needed.
        """
        scores_RV = sampling.ban(scores_RV, self.banned_ids)
        if self.ngram:
            repeats = [sampling.repeated_ngram_ends(h, self.ngram, exempt=self.ngram_exempt) for h in histories()]
            scores_RV = sampling.ban_in_rows(scores_RV, repeats)
        too_short = [length < self.min_length + len(self.prefix(prompt)) for prompt in prompts]
        if all(too_short):
            scores_RV = sampling.ban(scores_RV, self.end_ids)
        elif any(too_short):
            scores_RV = sampling.ban_in_rows(scores_RV, [self.end_ids if short else () for short in too_short])
        return scores_RV

    def forced(self, prompts: Sequence[int], length: int) -> list[int]:
        """The token that each row must have next; -1 = any."""
        prefixes = map(self.prefix, prompts)
        return [prefix[length] if length < len(prefix) else -1 for prefix in prefixes]


def pick_best(logits_RV: Tensor, rows: Sequence[DecodingRow]) -> list[int]:
    """Greedy search: the best token of each row."""
    return [int(i) for i in logits_RV.argmax(dim=-1).tolist()]


def pick_random(*, temperature: float, top_k: int, top_p: float) -> Pick:
    """Sampling: temperature, then top-k, then top-p, then a draw with the row's own random number."""

    def pick(logits_RV: Tensor, rows: Sequence[DecodingRow]) -> list[int]:
        logits_RV = sampling.keep_top_k(sampling.sharpen(logits_RV, temperature), top_k)
        return sampling.draw(sampling.keep_top_p(logits_RV, top_p), [uniform(row) for row in rows])

    def uniform(row: DecodingRow) -> float:
        assert row.random is not None, "a row that is sampled needs random numbers"
        return row.random.random()

    return pick


def sample(
    decoding: Decoding, rows: list[DecodingRow], *, constraints: Constraints, pick: Pick
) -> Iterator[DecodingRow]:
    """Decode every row on its own, and yield it each time it has got a token.

    The caller may set `row.finish` when it gets the row, and so end it; closing the iterator ends everything.

    Args:
        decoding: The batch, one row a prompt.
        rows: Several may belong to one prompt.
        constraints: What may be produced.
        pick: Chooses the tokens: `pick_best` or `pick_random(...)`.
    """
    decoding.select([row.prompt for row in rows])
    while rows:
        histories = functools.partial(_histories, rows)
        prompts, length = [row.prompt for row in rows], len(rows[0].tokens)
        logits_RV = constraints.distribution(decoding.logits_RV, histories)
        picked = pick(constraints.ban(logits_RV, prompts, length, histories), rows)
        forced = constraints.forced(prompts, length)
        tokens = [ours if ours >= 0 else theirs for ours, theirs in zip(forced, picked, strict=True)]
        log_probs = logits_RV.log_softmax(dim=-1)[torch.arange(len(rows)), tokens].tolist()
        for row, token, log_prob in zip(rows, tokens, log_probs, strict=True):
            row.tokens.append(token)
            row.log_prob += log_prob
            if token in constraints.end_ids:
                row.finish = "stop"
            elif len(row.tokens) >= constraints.limit(row.prompt):
                row.finish = "length"
            yield row
        alive = [i for i, row in enumerate(rows) if row.finish is None]
        if len(alive) < len(rows):
            rows = [rows[i] for i in alive]
            decoding.select(alive)
        if rows:
            decoding.step([row.tokens[-1] for row in rows])


def _histories(rows: Sequence[DecodingRow]) -> list[list[int]]:
    return [row.tokens for row in rows]
