"""Greedy search and sampling, where every row is independent; and the constraints of all searches.

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
    """A hypothesis that is being decoded.

    Attributes:
        prompt: Place of its prompt in the batch.
        tokens: Tokens so far, end token included.
        log_prob: Sum of the tokens' log probabilities (repetition penalty included, bans and temperature not).
        random: Its own random numbers, for sampling.
        finish: Why it ended; None while it is alive. The caller of `sample` may set it.
    """

    prompt: int
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    random: Random | None = None
    finish: FinishReason | None = None


@dataclass(frozen=True)
class Constraints:
    """Constraints on the tokens of answers.

    A banned token cannot be chosen, but stays in the distribution: the other tokens keep the model's probabilities, as
    in OpenNMT-py.

    Attributes:
        end_ids: Tokens that end an answer.
        max_lengths: Most tokens of an answer to each prompt, without its prefix.
        absent_ids: Rows of the output layer without a token; they are not in the distribution.
        banned_ids: Tokens that are never generated.
        min_length: Fewest tokens before an end token, without the prefix.
        repetition_penalty: See `sampling.penalize_repetition`; it counts the tokens of the answer, not those of
            the prompt, as in CTranslate2.
        ngram: No n-gram of this length occurs twice in an answer; 0 = off.
        ngram_exempt: An n-gram that contains one of these tokens may repeat.
        prefixes: Tokens with which the answer to each prompt starts; empty = no prefixes.
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
        """Most tokens of an answer to a prompt, prefix included."""
        return self.max_lengths[prompt] + len(self.prefix(prompt))

    def prefix(self, prompt: int) -> Sequence[int]:
        return self.prefixes[prompt] if self.prefixes else ()

    def distribution(self, logits_RV: Tensor, histories: Histories) -> Tensor:
        """The logits on which scores are based: with the repetition penalty, without absent tokens."""
        if self.repetition_penalty != 1.0:
            logits_RV = sampling.penalize_repetition(logits_RV, histories(), self.repetition_penalty)
        return sampling.ban(logits_RV, self.absent_ids)

    def ban(self, scores_RV: Tensor, prompts: Sequence[int], length: int, histories: Histories) -> Tensor:
        """The scores with banned tokens at -inf.

        Args:
            scores_RV: Logits or log probabilities of the next token.
            prompts: The prompt of each row.
            length: Number of tokens of every row.
            histories: Returns the rows' tokens; called only if they are needed.
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
        """The next token of each row's prefix; -1 = none, any token is allowed."""
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
    """Decode all rows independently, and yield each row after each of its tokens.

    The caller can end a row by setting `row.finish`; closing the iterator ends all.

    Args:
        decoding: The batch, one row per prompt.
        rows: Several rows may share a prompt.
        constraints: Allowed tokens and lengths.
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
