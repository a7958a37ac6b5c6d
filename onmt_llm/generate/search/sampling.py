"""Greedy search and sampling, where every row is independent; and the constraints of all searches.

Shapes: R = rows (hypotheses that are alive), V = vocabulary. The functions on logits do not change their input.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.generate.engine import FinishReason, end_ids
from onmt_llm.generate.lengths import max_answer_length
from onmt_llm.generate.search.state import PromptIds

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec

Pick = Callable[[Tensor, Sequence["DecodingRow"]], "list[int]"]
Histories = Callable[[], Sequence[Sequence[int]]]
BANNED = float("-inf")
_CHUNK = 64
"""Tokens of a chunk of the vocabulary, of which `top_k` first computes only the maximum."""


@dataclass
class DecodingRow:
    """A hypothesis that is being decoded.

    Attributes:
        prompt: Place of its prompt in the batch.
        tokens: Tokens so far, end token included.
        log_prob: Sum of the tokens' log probabilities (penalties included, bans and temperature not).
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
        max_lengths: Maximum number of tokens of an answer to each prompt, without its prefix.
        absent_ids: Rows of the output layer without a token; they are not in the distribution.
        banned_ids: Tokens that are never generated.
        min_length: Fewest tokens before an end token, without the prefix.
        repetition_penalty: See `penalize_repetition`; it counts the tokens of the answer, not those of
            the prompt, as in CTranslate2.
        presence_penalty, frequency_penalty: See `penalize_presence`; of the tokens of the answer too.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ngram: int = 0
    ngram_exempt: frozenset[int] = frozenset()
    prefixes: Sequence[Sequence[int]] = ()

    def limit(self, prompt: int) -> int:
        """Maximum number of tokens of an answer to a prompt, prefix included."""
        return self.max_lengths[prompt] + len(self.prefix(prompt))

    def prefix(self, prompt: int) -> Sequence[int]:
        return self.prefixes[prompt] if self.prefixes else ()

    def distribution(self, logits_RV: Tensor, histories: Histories) -> Tensor:
        """The logits on which scores are based: with the penalties, without absent tokens."""
        if self.repetition_penalty != 1.0:
            logits_RV = penalize_repetition(logits_RV, histories(), self.repetition_penalty)
        if self.presence_penalty or self.frequency_penalty:
            presence, frequency = self.presence_penalty, self.frequency_penalty
            logits_RV = penalize_presence(logits_RV, histories(), presence=presence, frequency=frequency)
        return ban(logits_RV, self.absent_ids)

    def ban(self, scores_RV: Tensor, prompts: Sequence[int], lengths: Sequence[int], histories: Histories) -> Tensor:
        """The scores with banned tokens at -inf.

        Args:
            scores_RV: Logits or log probabilities of the next token.
            prompts: The prompt of each row.
            lengths: Number of tokens of each row.
            histories: Returns the rows' tokens; called only if they are needed.
        """
        scores_RV = ban(scores_RV, self.banned_ids)
        if self.ngram:
            repeats = [repeated_ngram_ends(h, self.ngram, exempt=self.ngram_exempt) for h in histories()]
            scores_RV = ban_in_rows(scores_RV, repeats)
        too_short = [
            length < self.min_length + len(self.prefix(prompt)) for prompt, length in zip(prompts, lengths, strict=True)
        ]
        if all(too_short):
            scores_RV = ban(scores_RV, self.end_ids)
        elif any(too_short):
            scores_RV = ban_in_rows(scores_RV, [self.end_ids if short else () for short in too_short])
        return scores_RV

    def forced(self, prompts: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """The next token of each row's prefix; -1 = none, any token is allowed."""
        prefixes = map(self.prefix, prompts)
        return [
            prefix[length] if length < len(prefix) else -1 for prefix, length in zip(prefixes, lengths, strict=True)
        ]


def build_constraints(
    options: GenerationConfig,
    codec: Codec,
    model: ModelConfig,
    *,
    prompts: Sequence[PromptIds],
    prefixes: Sequence[Sequence[int]] = (),
) -> Constraints:
    """The constraints that options set.

    Args:
        options: How to search or sample.
        codec: Its vocabulary and stop tokens.
        model: The architecture.
        prompts: Of the batch; an encoder-decoder's answers are limited by their lengths.
        prefixes: See `Constraints`.
    """
    vocab = codec.vocab
    banned = [vocab.unk_id] if options.ban_unk_token and vocab.unk_id is not None else []
    limits = [options.max_length] * len(prompts)
    if not model.is_decoder_only:
        limits = [max_answer_length(options, len(prompt)) for prompt in prompts]
    return Constraints(
        end_ids=tuple(end_ids(codec, options)),
        max_lengths=limits,
        # An embedding may have more rows than tokens, which makes its size a multiple of a power of two.
        absent_ids=tuple(range(len(vocab), model.vocab_size)),
        banned_ids=(*banned, *codec.vocab.ids(codec.config.banned_tokens)),
        min_length=options.min_length,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        ngram=options.block_ngram_repeat,
        ngram_exempt=frozenset(vocab.ids(token for token in options.ignore_when_blocking if token in vocab)),
        prefixes=prefixes,
    )


def pick_best(logits_RV: Tensor, rows: Sequence[DecodingRow]) -> list[int]:
    """Greedy search: the best token of each row."""
    return [int(i) for i in logits_RV.argmax(dim=-1).tolist()]


def pick_random(options: GenerationConfig) -> Pick:
    """Sampling: temperature, then top-k, then top-p, then a draw with the row's own random number."""

    def pick(logits_RV: Tensor, rows: Sequence[DecodingRow]) -> list[int]:
        logits_RV = keep_top_k(sharpen(logits_RV, options.random_sampling_temp), options.random_sampling_topk)
        return draw(keep_top_p(logits_RV, options.random_sampling_topp), [uniform(row) for row in rows])

    def uniform(row: DecodingRow) -> float:
        assert row.random is not None, "a row that is sampled needs random numbers"
        return row.random.random()

    return pick


def picker(options: GenerationConfig) -> Pick:
    """Sampling or greedy search, as the options say."""
    return pick_random(options) if options.samples else pick_best


class Rows(Protocol):
    """What `sample` needs of a `Decoding`."""

    logits_RV: Tensor
    source_lengths: list[int]

    def step(self, tokens: Sequence[int] | Tensor) -> None: ...

    def select(self, rows: Sequence[int]) -> None: ...


def sample(
    decoding: Rows, rows: list[DecodingRow], *, options: GenerationConfig, constraints: Constraints
) -> Iterator[DecodingRow]:
    """Decode all rows independently, and yield each row after each of its tokens.

    The caller can end a row by setting `row.finish`; closing the iterator ends all.

    Args:
        decoding: The batch, one row per prompt.
        rows: Several rows may share a prompt.
        options: How to choose tokens.
        constraints: Allowed tokens and lengths.
    """
    pick = picker(options)
    chosen = [row.prompt for row in rows]
    if chosen != list(range(len(decoding.source_lengths))):
        decoding.select(chosen)
    while True:
        extend(rows, decoding.logits_RV, pick=pick, constraints=constraints)
        yield from rows
        alive = [i for i, row in enumerate(rows) if row.finish is None]
        if not alive:
            return
        if len(alive) < len(rows):
            rows = [rows[i] for i in alive]
            decoding.select(alive)
        decoding.step([row.tokens[-1] for row in rows])


def extend(rows: Sequence[DecodingRow], logits_RV: Tensor, *, pick: Pick, constraints: Constraints) -> Tensor:
    """Choose the next token of each row; rows that are then complete get their `finish`.

    Returns:
        (R, V): the log probabilities that scores add up.
    """
    histories = functools.partial(_histories, rows)
    prompts, lengths = [row.prompt for row in rows], [len(row.tokens) for row in rows]
    logits_RV = constraints.distribution(logits_RV, histories)
    picked = pick(constraints.ban(logits_RV, prompts, lengths, histories), rows)
    forced = constraints.forced(prompts, lengths)
    tokens = [ours if ours >= 0 else theirs for ours, theirs in zip(forced, picked, strict=True)]
    log_probs_RV = logits_RV.log_softmax(dim=-1)
    log_probs = log_probs_RV[torch.arange(len(rows)), tokens].tolist()
    for row, token, log_prob in zip(rows, tokens, log_probs, strict=True):
        row.tokens.append(token)
        row.log_prob += log_prob
        if token in constraints.end_ids:
            row.finish = "stop"
        elif len(row.tokens) >= constraints.limit(row.prompt):
            row.finish = "length"
    return log_probs_RV


def _histories(rows: Sequence[DecodingRow]) -> list[list[int]]:
    return [row.tokens for row in rows]


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


def penalize_presence(
    logits_RV: Tensor, histories: Sequence[Sequence[int]], *, presence: float, frequency: float
) -> Tensor:
    """Subtract from the logit of each token in `histories[r]`: `presence`, and `frequency` times its count there."""
    counts = Counter((row, token) for row, history in enumerate(histories) for token in history)
    if not counts:
        return logits_RV
    rows, tokens = zip(*counts, strict=True)
    penalties_N = presence + frequency * torch.tensor([*counts.values()], dtype=logits_RV.dtype)
    logits_RV = logits_RV.clone()
    logits_RV[rows, tokens] -= penalties_N.to(logits_RV.device)
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
