"""Log probabilities of tokens in their places, for requests that ask for them.

Shapes: T = places, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from onmt_llm.errors import ConfigError
from onmt_llm.generate.engine import TokenLogProbs
from onmt_llm.generate.scheduling.ticket import Request

if TYPE_CHECKING:
    from torch import Tensor

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
            f"Log probabilities must go with beam_size 1 and n_best 1, but these are {options.beam_size} and "
            f"{options.n_best}."
        )
    if request.prompt_log_probs and not is_decoder_only:
        raise ConfigError(
            "Log probabilities of a prompt need a decoder-only model, but this model only reads its source.",
            hint="leave them out, or score the target with Engine.score",
        )


def describe(log_probs_TV: Tensor, ids: Sequence[int], top: int, vocab: Vocab) -> Iterator[TokenLogProbs]:
    """What is reported of tokens.

    Args:
        log_probs_TV: The prediction in the place of each.
        ids: The tokens.
        top: How many of the most likely tokens are reported too.
        vocab: Their names.
    """
    values_TK, ids_TK = log_probs_TV.topk(min(top, len(vocab), log_probs_TV.shape[-1]), dim=-1)
    own = log_probs_TV.gather(1, ids_TK.new_tensor(list(ids))[:, None])[:, 0].tolist()
    for token, log_prob, values, others in zip(ids, own, values_TK.tolist(), ids_TK.tolist(), strict=True):
        best = tuple((vocab[other], value) for other, value in zip(others, values, strict=True))
        yield TokenLogProbs(vocab[token], log_prob, best)
