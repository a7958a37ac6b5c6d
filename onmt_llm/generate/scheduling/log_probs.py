"""Log probabilities of tokens in their places, for requests that ask for them.

Shapes: T = places, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onmt_llm.errors import ConfigError
from onmt_llm.generate.engine import TokenLogProbs
from onmt_llm.generate.scheduling.ticket import Request

if TYPE_CHECKING:
    from onmt_llm.text.vocab import Vocab


def check_log_probs(request: Request, *, is_decoder_only: bool) -> None:
    """Refuse log probabilities where there are none.

    Raises:
        ConfigError: They are requested of a beam search, of several answers at once, or of the tokens of a source.
    """
    if request.top_log_probs is None and not request.prompt_log_probs:
        return
    options = request.options
    if options.beam_size > 1 or options.n_best > 1:
        raise ConfigError(
            f"Log probabilities need beam_size 1 and n_best 1, but these are {options.beam_size} and {options.n_best}."
        )
    if request.prompt_log_probs and not is_decoder_only:
        raise ConfigError(
            "Log probabilities of a prompt need a decoder-only model, but this model only reads its source.",
            hint="leave them out, or score the target with Engine.score",
        )


def describe(log_probs_TV: np.ndarray, ids: Sequence[int], top: int, vocab: Vocab) -> Iterator[TokenLogProbs]:
    """What is reported of tokens.

    Args:
        log_probs_TV: The prediction in the place of each.
        ids: The tokens.
        top: How many of the most likely tokens are reported too.
        vocab: Their names.
    """
    for token, log_probs_V in zip(ids, log_probs_TV, strict=True):
        best: Iterable[int] = ()
        if top > 0:
            likely = np.argpartition(log_probs_V, -min(top, len(vocab)))[-min(top, len(vocab)) :]
            best = likely[np.argsort(-log_probs_V[likely], kind="stable")].tolist()
        others = tuple((vocab[other], float(log_probs_V[other])) for other in best)
        yield TokenLogProbs(vocab[token], float(log_probs_V[token]), others)


def log_softmax(logits_TV: np.ndarray, answer: Sequence[int], repetition_penalty: float) -> np.ndarray:
    """Log probabilities, of which the last rows are those of an answer: there its tokens before are penalised."""
    logits_TV = logits_TV.astype(np.float32)
    for place in range(1, len(answer)):
        row_V, seen = logits_TV[place - len(answer)], sorted(set(answer[:place]))
        row_V[seen] = np.where(row_V[seen] > 0, row_V[seen] / repetition_penalty, row_V[seen] * repetition_penalty)
    logits_TV -= logits_TV.max(axis=-1, keepdims=True)
    return logits_TV - np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
