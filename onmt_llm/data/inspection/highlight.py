"""Mark trained tokens with brackets, which a terminal shows in colour (`log.Highlighter`)."""

from __future__ import annotations

from onmt_llm.data.example import IGNORED, Encoded
from onmt_llm.log import CLOSE, OPEN
from onmt_llm.text.vocab import Vocab


def marked(encoded: Encoded, vocab: Vocab) -> str:
    """The decoder's tokens, with brackets ⟦ ⟧ around every run of trained tokens.

    Args:
        encoded: An example.
        vocab: The decoder's tokens.
    """
    ids = [*encoded.tgt, *encoded.labels[-1:]]
    shown: list[str] = []
    inside = False
    for position, id_ in enumerate(ids):
        trained = position > 0 and encoded.labels[position - 1] != IGNORED
        if trained != inside:
            shown.append(OPEN if trained else CLOSE)
            inside = trained
        if id_ != IGNORED:
            shown.append(vocab[id_])
    return " ".join([*shown, CLOSE] if inside else shown)
