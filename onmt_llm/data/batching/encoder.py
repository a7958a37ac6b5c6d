"""`Encoder`: convert examples to input ids and labels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onmt_llm.data.example import IGNORED, Encoded, Example, Ids, side_tokens
from onmt_llm.errors import ConfigError
from onmt_llm.text.codec import Codec
from onmt_llm.text.features import split_features
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.pieces import PieceTable
from onmt_llm.text.vocab import Vocab

_WIDTH = 4  # bytes of an id


class Encoder:
    """Converts the tokens of examples to ids.

    A language model's sequence is [bos] + source + target + [eos], an encoder-decoder's target [bos] + target + [eos];
    `tgt` is that without its last token, `labels` without its first. A token is trained if its segment is, EOS if the
    last segment is (or as the example specifies). BOS and EOS are not added if a text has its own.

    Args:
        codec: Text side of the model.

    Raises:
        ConfigError: The vocabulary lacks a token that the task needs.
    """

    def __init__(self, codec: Codec) -> None:
        _check_specials(codec)
        vocab = codec.vocab
        self._is_lm = codec.task == "lm"
        self._vocab = vocab
        self._src_vocab = codec.src_vocab
        self._feature_vocabs = codec.feature_vocabs
        self._numbers = IdLookup(vocab)
        self._src_numbers = IdLookup(self._src_vocab)
        self._bos = _bytes([vocab.bos_id]) if codec.bos is not None and vocab.bos_id is not None else b""
        self._eos = _bytes([vocab.eos_id]) if vocab.eos_id is not None else b""

    def __call__(self, example: Example) -> Encoded | None:
        """The example as ids; None if it has no token (on either side, for an encoder-decoder)."""
        segments = [*example.src, *example.tgt] if self._is_lm else example.tgt
        src, features, unknown = (None, None, 0) if self._is_lm else self._source(example)
        parts: list[bytes] = []
        for segment in segments:
            part, number = self._numbers(segment)
            parts.append(part)
            unknown += number
        ids = b"".join(parts) if len(parts) > 1 else parts[0] if parts else b""
        if not ids or (src is not None and not len(src)):
            return None
        head = self._bos if not ids.startswith(self._bos) else b""
        tail = self._eos if ids[-_WIDTH:] != self._eos and not example.closed else b""
        sequence: Ids = np.frombuffer(b"".join((head, ids, tail)), dtype=np.int32)
        if len(sequence) < 2:
            return None
        trained: int | None = len(sequence) - 1
        labels = sequence
        trains_end = segments[-1].train_on if example.train_end is None else example.train_end
        if not (trains_end and all([segment.train_on for segment in segments])):
            labels, trained = _masked(sequence, segments, parts, start=len(head)), None
            if tail and not trains_end:
                labels[-1] = IGNORED
        align = None if example.align is None else _label_positions(example.align, shift=len(head) // _WIDTH - 1)
        return Encoded(src, sequence[:-1], labels[1:], unknown, features, align, trained)

    def _source(self, example: Example) -> tuple[Ids, Ids | None, int]:
        if not self._feature_vocabs:
            parts = [self._src_numbers(segment) for segment in example.src]
            ids = b"".join([part for part, _ in parts])
            return np.frombuffer(ids, dtype=np.int32), None, sum([unknown for _, unknown in parts])
        tokens, *columns = split_features(side_tokens(example.src), len(self._feature_vocabs))
        ids_FS = [vocab.ids(column) for vocab, column in zip(self._feature_vocabs, columns, strict=True)]
        features: Ids = np.array(ids_FS, dtype=np.int32).T
        numbers = self._src_vocab.ids(tokens)
        return np.array(numbers, dtype=np.int32), features, _count_unknown(numbers, self._src_vocab.unk_id)


class IdLookup:
    """Ids of segments in one vocabulary.

    Piece numbers of a tokeniser are mapped to ids with a table, built once per tokeniser.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._translations: dict[PieceTable, _Translation] = {}

    def __call__(self, segment: Segment) -> tuple[bytes, int]:
        """Ids of the segment's tokens, 4 bytes each, and the number of unknown tokens."""
        pieces = segment.pieces
        if pieces is not None:
            translation = self._translations.get(pieces.table)
            if translation is None:
                translation = self._translations[pieces.table] = _Translation.build(pieces.table, self._vocab)
            if translation.is_same:
                return pieces.ids, 0
            if translation.ids is not None:
                ids = translation.ids[np.frombuffer(pieces.ids, dtype=np.int32)]
                unknown = int(np.count_nonzero(ids == self._vocab.unk_id)) if translation.has_unknown else 0
                return ids.tobytes(), unknown
        numbers = self._vocab.ids(segment.tokens or ())
        return _bytes(numbers), _count_unknown(numbers, self._vocab.unk_id)


@dataclass(frozen=True)
class _Translation:
    """Maps the piece numbers of a tokeniser to the ids of a vocabulary.

    Attributes:
        ids: Id of each piece; None if some piece has none, which is an error only if it occurs in a text.
        is_same: Whether piece numbers and ids are identical.
        has_unknown: Whether some pieces are not in the vocabulary.
    """

    ids: Ids | None
    is_same: bool = False
    has_unknown: bool = False

    @classmethod
    def build(cls, table: PieceTable, vocab: Vocab) -> _Translation:
        is_known = all(token in vocab for token in table.tokens)
        if vocab.unk_id is None and not is_known:
            return cls(None)
        ids: Ids = np.array(vocab.ids(table.tokens), dtype=np.int32)
        return cls(ids, is_same=np.array_equal(ids, np.arange(len(ids))), has_unknown=not is_known)


def _check_specials(codec: Codec) -> None:
    vocab, specials, pairs = codec.vocab, codec.config.specials, codec.task == "seq2seq"
    if vocab.bos_id is None and (specials.add_bos or pairs):
        raise ConfigError(
            f"The vocabulary must hold the token that starts a target, but {specials.bos!r} is not in it."
        )
    if vocab.eos_id is None and pairs:
        raise ConfigError(f"The vocabulary must hold the token that ends a target, but {specials.eos!r} is not in it.")


def _masked(sequence: Ids, segments: Sequence[Segment], parts: Sequence[bytes], *, start: int) -> Ids:
    """Labels of a sequence in which only some segments are trained."""
    labels = sequence.copy()
    for segment, part in zip(segments, parts, strict=True):
        end = start + len(part)
        if not segment.train_on:
            labels[start // _WIDTH : end // _WIDTH] = IGNORED
        start = end
    return labels


def _bytes(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def _count_unknown(ids: list[int], unk_id: int | None) -> int:
    return 0 if unk_id is None else ids.count(unk_id)


def _label_positions(pairs: list[tuple[int, int]], *, shift: int) -> Ids:
    """Convert (source, target) token pairs to (label, source); with BOS, label t is target token t."""
    rows = [(target + shift, source) for source, target in pairs if target + shift >= 0]
    return np.array(rows, dtype=np.int32).reshape(-1, 2)
