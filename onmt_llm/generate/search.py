"""Decoding with the torch model: greedy search, sampling and beam search over a key/value cache.

Shapes: B = prompts, P = longest prompt, S = source length, R = rows (hypotheses that are alive), D = model width, V =
    vocabulary.

Prompts of a batch are padded on the left, so that all rows grow at the same place; the cache masks the padding and
counts positions without it, which makes an answer independent of its neighbours. Rows that have ended leave the batch
at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onmt_llm.generate import sampling
from onmt_llm.nn.cache import KVCache

if TYPE_CHECKING:
    from onmt_llm.nn.transformer import Transformer

FinishReason = Literal["stop", "length"]
Pick = Callable[[Tensor, Sequence["Row"]], "list[int]"]


@dataclass
class Row:
    """One hypothesis.

    Attributes:
        prompt: Its prompt's place in the batch.
        tokens: What was produced so far, the end token included.
        log_prob: Sum of the tokens' log probabilities (penalties and bans included, temperature not).
        random: Its own source of random numbers, where tokens are drawn.
        finish: Why it ended; None while it is alive. Whoever iterates over `sample` may set it.
    """

    prompt: int
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    random: Random | None = None
    finish: FinishReason | None = None


@dataclass(frozen=True)
class Rules:
    """What may be produced at all.

    Attributes:
        end_ids: Tokens that end an answer.
        banned_ids: Tokens that are never produced.
        min_length: Tokens that an answer has at least before an end token.
        repetition_penalty: See `sampling.penalize_repetition`; tokens of the answer count, those of the prompt do not,
            as in CTranslate2.
        ngram: No n-gram of this length occurs twice in an answer; 0 = off.
    """

    end_ids: tuple[int, ...]
    banned_ids: tuple[int, ...] = ()
    min_length: int = 0
    repetition_penalty: float = 1.0
    ngram: int = 0

    def apply(self, logits_RV: Tensor, rows: Sequence[Row]) -> Tensor:
        """The logits with penalties applied and with what is not allowed banned."""
        histories = [row.tokens for row in rows]
        logits_RV = sampling.penalize_repetition(logits_RV, histories, self.repetition_penalty)
        logits_RV = sampling.ban(logits_RV, self.banned_ids)
        if self.ngram:
            repeats = [sampling.repeated_ngram_ends(history, self.ngram) for history in histories]
            logits_RV = sampling.ban_in_rows(logits_RV, repeats)
        too_short = [self.end_ids if len(history) < self.min_length else () for history in histories]
        return sampling.ban_in_rows(logits_RV, too_short)


class Decoding:
    """A batch while it is decoded: the model, its cache and the next token's logits of every row.

    Args:
        model: Decoder-only (the prompts are continued) or encoder-decoder (the prompts are sources).
        prompts: Token ids, none empty.
        start_id: First token of every target of an encoder-decoder model.
        features: Features of each source's tokens, for a model with `src_features`.

    Attributes:
        logits_RV: float32 logits of each row's next token.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        *,
        start_id: int | None = None,
        features: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._mask_RS: Tensor | None = None
        memory_BSD: Tensor | None = None
        if model.config.is_decoder_only:
            ids_BP, left_pad_B = self._pad_left(prompts)
        else:
            assert start_id is not None, "an encoder-decoder model needs a start token"
            memory_BSD = self._encode(prompts, features)
            ids_BP, left_pad_B = torch.full((len(prompts), 1), start_id, device=self._device), None
        self._cache = KVCache(model.config.decoder_layers, left_pad_B=left_pad_B)
        self.logits_RV = self._forward(ids_BP, memory_BSD)

    def step(self, tokens: Sequence[int]) -> None:
        """Append one token to every row."""
        self.logits_RV = self._forward(torch.tensor(tokens, device=self._device)[:, None])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be left out, or be there several times."""
        idx_R = torch.tensor(rows, device=self._device, dtype=torch.long)
        self._cache.reorder(idx_R)
        self.logits_RV = self.logits_RV[idx_R]
        if self._mask_RS is not None:
            self._mask_RS = self._mask_RS[idx_R]

    def _forward(self, ids_RT: Tensor, memory_RSD: Tensor | None = None) -> Tensor:
        # The memory is handed over once: from then on the cache has its keys and values.
        hidden_RTD = self._model.decode(ids_RT, memory_RSD, self._mask_RS, cache=self._cache)
        return self._model.logits(hidden_RTD[:, -1:])[:, 0].float()

    def _pad_left(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, prompts))
        left_pad = [longest - len(prompt) for prompt in prompts]
        ids = [[0] * pad + list(prompt) for pad, prompt in zip(left_pad, prompts, strict=True)]
        return torch.tensor(ids, device=self._device), torch.tensor(left_pad, device=self._device)

    def _encode(self, sources: Sequence[Sequence[int]], features: Sequence[Sequence[Sequence[int]]] | None) -> Tensor:
        longest = max(map(len, sources))
        src_BS = torch.tensor([[*source, *[0] * (longest - len(source))] for source in sources], device=self._device)
        lengths_B1 = torch.tensor([[len(source)] for source in sources], device=self._device)
        self._mask_RS = torch.arange(longest, device=self._device)[None] < lengths_B1
        features_BSF: Tensor | None = None
        if features is not None:
            none = [0] * len(self._model.config.src_features)
            rows = [[*row, *[none] * (longest - len(row))] for row in features]
            features_BSF = torch.tensor(rows, device=self._device)
        return self._model.encode(src_BS, self._mask_RS, features_BSF=features_BSF)


def pick_best(logits_RV: Tensor, rows: Sequence[Row]) -> list[int]:
    """Greedy search: the best token of each row."""
    return [int(i) for i in logits_RV.argmax(dim=-1).tolist()]


def pick_random(*, temperature: float, top_k: int, top_p: float) -> Pick:
    """Sampling: temperature, then top-k, then top-p, then a draw with the row's own random number."""

    def pick(logits_RV: Tensor, rows: Sequence[Row]) -> list[int]:
        logits_RV = sampling.keep_top_k(sampling.sharpen(logits_RV, temperature), top_k)
        return sampling.draw(sampling.keep_top_p(logits_RV, top_p), [uniform(row) for row in rows])

    def uniform(row: Row) -> float:
        assert row.random is not None, "a row that is sampled needs random numbers"
        return row.random.random()

    return pick


def sample(decoding: Decoding, rows: list[Row], *, rules: Rules, pick: Pick, max_length: int) -> Iterator[Row]:
    """Decode every row on its own, and yield it each time it has got a token.

    The caller may set `row.finish` when it gets the row, and so end it; closing the iterator ends everything.

    Args:
        decoding: The batch, one row a prompt.
        rows: Several may belong to one prompt.
        rules: What may be produced.
        pick: Chooses the tokens: `pick_best` or `pick_random(...)`.
        max_length: Tokens after which a row ends.
    """
    decoding.select([row.prompt for row in rows])
    while rows:
        logits_RV = rules.apply(decoding.logits_RV, rows)
        tokens = pick(logits_RV, rows)
        log_probs = logits_RV.log_softmax(dim=-1)[torch.arange(len(rows)), tokens].tolist()
        for row, token, log_prob in zip(rows, tokens, log_probs, strict=True):
            row.tokens.append(token)
            row.log_prob += log_prob
            if token in rules.end_ids:
                row.finish = "stop"
            elif len(row.tokens) >= max_length:
                row.finish = "length"
            yield row
        alive = [i for i, row in enumerate(rows) if row.finish is None]
        if len(alive) < len(rows):
            rows = [rows[i] for i in alive]
            decoding.select(alive)
        if rows:
            decoding.step([row.tokens[-1] for row in rows])


def length_penalty(kind: str, alpha: float) -> Callable[[int], float]:
    """What a score is divided by, as a function of the answer's length in tokens, end token included."""
    table: dict[str, Callable[[int], float]] = {
        "none": lambda n: 1.0,
        "avg": lambda n: float(max(n, 1)),
        "wu": lambda n: ((5.0 + n) / 6.0) ** alpha,
    }
    return table[kind]


@dataclass
class _Beam:
    """State of one prompt's search: the best `size` finished hypotheses, and whether better ones can still come."""

    size: int
    penalty: Callable[[int], float]
    finished: list[tuple[float, Row]] = field(default_factory=list)
    done: bool = False

    def add(self, row: Row) -> None:
        self.finished.append((row.log_prob / self.penalty(len(row.tokens)), row))
        self.finished.sort(key=lambda item: -item[0])
        del self.finished[self.size :]

    def close(self, alive: Sequence[Row]) -> None:
        """Stop when the best hypothesis alive, ended now, would not be among the finished ones any more."""
        if not alive:
            self.done = True
        elif len(self.finished) == self.size:
            best = max(row.log_prob for row in alive) / self.penalty(len(alive[0].tokens))
            self.done = best <= self.finished[-1][0]


def beam_search(
    decoding: Decoding,
    num_prompts: int,
    *,
    beam_size: int,
    rules: Rules,
    max_length: int,
    penalty: Callable[[int], float],
    at_stop: Callable[[list[int]], bool],
) -> list[list[tuple[float, Row]]]:
    """Beam search. Per step a prompt's `beam_size` best continuations are looked at; those that end are kept aside.

    A search is over when `beam_size` hypotheses have ended and none that is alive would beat them at its present
    length: the rule of transformers with `early_stopping=False`.

    Args:
        decoding: The batch, one row a prompt.
        num_prompts: Rows of the batch.
        beam_size: Hypotheses kept alive for each prompt.
        rules: What may be produced.
        max_length: Tokens after which a hypothesis ends.
        penalty: Divides the score of an ended hypothesis; see `length_penalty`.
        at_stop: Whether tokens end with a stop string.

    Returns:
        For each prompt up to `beam_size` pairs of score and ended row, best first.
    """
    beams = [_Beam(beam_size, penalty) for _ in range(num_prompts)]
    rows = [Row(prompt) for prompt in range(num_prompts)]
    # With several end tokens a beam could lose all its best continuations at once, hence the spare ones.
    width = max(2, 1 + len(rules.end_ids)) * beam_size
    while rows:
        log_probs_RV = rules.apply(decoding.logits_RV, rows).log_softmax(dim=-1)
        next_rows: list[Row] = []
        origins: list[int] = []
        for prompt, places in _by_prompt(rows):
            candidates = _continuations(log_probs_RV, rows, places, width)
            alive = _advance(beams[prompt], candidates, rules=rules, max_length=max_length, at_stop=at_stop)
            beams[prompt].close([row for row, _ in alive])
            if not beams[prompt].done:
                next_rows += [row for row, _ in alive]
                origins += [origin for _, origin in alive]
        rows = next_rows
        if rows:
            decoding.select(origins)
            decoding.step([row.tokens[-1] for row in rows])
    return [beam.finished for beam in beams]


def _by_prompt(rows: Sequence[Row]) -> list[tuple[int, list[int]]]:
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.prompt, []).append(place)
    return list(places.items())


def _continuations(log_probs_RV: Tensor, rows: Sequence[Row], places: list[int], width: int) -> list[tuple[Row, int]]:
    """The `width` best continuations of one prompt's rows, each with the row that it continues, best first."""
    vocab = log_probs_RV.size(-1)
    scores_K1 = torch.tensor([[rows[place].log_prob] for place in places], device=log_probs_RV.device)
    flat = (log_probs_RV[places] + scores_K1).flatten()
    values, indices = flat.topk(min(width, flat.numel()))
    result = []
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        if value > -math.inf:
            origin = places[index // vocab]
            row = rows[origin]
            result.append((Row(row.prompt, [*row.tokens, index % vocab], value), origin))
    return result


def _advance(
    beam: _Beam,
    candidates: list[tuple[Row, int]],
    *,
    rules: Rules,
    max_length: int,
    at_stop: Callable[[list[int]], bool],
) -> list[tuple[Row, int]]:
    """Put aside the continuations that end; return the best others, as many as the beam holds."""
    alive: list[tuple[Row, int]] = []
    for rank, (row, origin) in enumerate(candidates):
        ends = row.tokens[-1] in rules.end_ids or at_stop(row.tokens)
        if ends or len(row.tokens) >= max_length:
            # A continuation beyond the beam may not end: the beam would fill up with bad short answers.
            if rank < beam.size:
                row.finish = "stop" if ends else "length"
                beam.add(row)
        elif len(alive) < beam.size:
            alive.append((row, origin))
    return alive
