"""Examples to ids: what goes into the model, and what it must answer at each position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.model_text import ModelText
from onmt_llm.text.features import split_features

IGNORED = -100
"""Label of a position without loss, as torch's cross entropy has it."""

Ids = npt.NDArray[np.int32]


@dataclass(slots=True)
class Encoded:
    """One example as ids.

    Attributes:
        src: Input of the encoder, or None for a language model.
        tgt: Input of the decoder.
        labels: The token that follows at each position of `tgt`; -100 where the loss does not look.
        unknown: How many tokens are not in the vocabulary.
        features: (S, F) ids of the source tokens' features, or None where the model has none.
        align: (M, 2) aligned positions: of `labels`, and of `src`; None = not known.
    """

    src: Ids | None
    tgt: Ids
    labels: Ids
    unknown: int
    features: Ids | None = None
    align: Ids | None = None

    @property
    def width(self) -> int:
        """Columns that the example needs in a batch: its longer side."""
        return len(self.tgt) if self.src is None else max(len(self.tgt), len(self.src))

    @property
    def num_trained(self) -> int:
        return int(np.count_nonzero(self.labels != IGNORED))


class Encoder:
    """Numbers the tokens of examples.

    A language model's sequence is [bos] + source + target + [eos], an encoder-decoder's target [bos] + target + [eos];
    `tgt` is that without its last token, `labels` without its first. A token is trained if its segment is, EOS if the
    last segment is (or as the example says). BOS and EOS are not put where a text brings its own.
    """

    def __init__(self, model: ModelText) -> None:
        vocab = model.vocab
        self._is_lm = model.task == "lm"
        self._vocab = vocab
        self._src_vocab = model.src_vocab or vocab
        self._feature_vocabs = model.feature_vocabs
        self._bos = [vocab.bos_id] if model.bos is not None and vocab.bos_id is not None else []
        self._eos = [vocab.eos_id] if vocab.eos_id is not None else []

    def __call__(self, example: Example) -> Encoded | None:
        """The example as ids; None if it has no token (on either side, for an encoder-decoder)."""
        segments = [*example.src, *example.tgt] if self._is_lm else example.tgt
        src, features, unknown = (None, None, 0) if self._is_lm else self._source(example)
        tokens: list[str] = []
        untrained: list[tuple[int, int]] = []
        for segment in segments:
            start = len(tokens)
            tokens += segment.tokens or ()
            if not segment.train_on:
                untrained.append((start, len(tokens)))
        if not tokens or (src is not None and not len(src)):
            return None
        ids = self._vocab.ids(tokens)
        head = self._bos if ids[:1] != self._bos else []
        tail = self._eos if ids[-1:] != self._eos and not example.closed else []
        sequence = np.array([*head, *ids, *tail], dtype=np.int32)
        labels = sequence.copy()
        for start, end in untrained:
            labels[len(head) + start : len(head) + end] = IGNORED
        if tail and not (segments[-1].train_on if example.train_end is None else example.train_end):
            labels[-1] = IGNORED
        unknown += _count_unknown(ids, self._vocab.unk_id)
        if len(sequence) < 2:
            return None
        align = None if example.align is None else _label_positions(example.align, shift=len(head) - 1)
        return Encoded(src, sequence[:-1], labels[1:], unknown, features, align)

    def _source(self, example: Example) -> tuple[Ids, Ids | None, int]:
        tokens = side_tokens(example.src)
        features: Ids | None = None
        if self._feature_vocabs:
            tokens, *columns = split_features(tokens, len(self._feature_vocabs))
            ids_FS = [vocab.ids(column) for vocab, column in zip(self._feature_vocabs, columns, strict=True)]
            features = np.array(ids_FS, dtype=np.int32).T
        ids = self._src_vocab.ids(tokens)
        return np.array(ids, dtype=np.int32), features, _count_unknown(ids, self._src_vocab.unk_id)


def _count_unknown(ids: list[int], unk_id: int | None) -> int:
    return 0 if unk_id is None else ids.count(unk_id)


def _label_positions(pairs: list[tuple[int, int]], *, shift: int) -> Ids:
    """Pairs (source, target) of tokens as pairs (label, source): label t is target token t, where BOS comes first."""
    rows = [(target + shift, source) for source, target in pairs if target + shift >= 0]
    return np.array(rows, dtype=np.int32).reshape(-1, 2)
