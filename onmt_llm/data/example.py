"""`Example`, the text that transforms change, `Encoded`, the same example as token ids, and `Encoder` between them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onmt_llm.errors import ConfigError
from onmt_llm.text.codec import Codec
from onmt_llm.text.features import split_features
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.pieces import PieceTable
from onmt_llm.text.vocab import Vocab

IGNORED = -100
"""Label of a position without loss, as in torch's cross entropy."""

Ids = npt.NDArray[np.int32]

_WIDTH = 4  # bytes of an id


@dataclass(slots=True)
class Encoded:
    """One example as ids.

    Attributes:
        src: Input of the encoder, or None for a language model.
        tgt: Input of the decoder.
        labels: The next token at each position of `tgt`; -100 = not trained.
        unknown: Number of tokens that are not in the vocabulary.
        features: (S, F) ids of the source tokens' features; None = the model has none.
        align: (M, 2) aligned positions in `labels` and in `src`; None = unknown.
        trained: Number of trained labels, if known without counting.
        chosen: See `Example`.
        rejected: The same prompt with the rejected answer: a second row of the batch.
        corpus: Number of its corpus; None = only one corpus.
    """

    src: Ids | None
    tgt: Ids
    labels: Ids
    unknown: int
    features: Ids | None = None
    align: Ids | None = None
    trained: int | None = None
    chosen: bool | None = None
    rejected: Encoded | None = None
    corpus: int | None = None

    @property
    def width(self) -> int:
        """Columns that the example needs in a batch: its longer side; of a preference, which has two rows
        (`preference_rows`), twice the longer one."""
        if self.chosen is None:
            return self._row_width
        return 2 * max(self._row_width, 0 if self.rejected is None else self.rejected._row_width)

    @property
    def _row_width(self) -> int:
        return len(self.tgt) if self.src is None else max(len(self.tgt), len(self.src))

    @property
    def num_trained(self) -> int:
        return int(np.count_nonzero(self.labels != IGNORED)) if self.trained is None else self.trained


def side_tokens(side: Sequence[Segment]) -> list[str]:
    """All tokens of a tokenised side."""
    return [token for segment in side for token in segment.tokens or ()]


@dataclass(slots=True)
class Example:
    """One example of a corpus.

    A decoder-only example is its source segments followed by its target segments. `tgt` is empty for plain text.

    Attributes:
        src: Source side (or the whole text of a language-model example).
        tgt: Target side.
        corpus: Name of the corpus in `data:`.
        line: Line in the corpus file, counted from 1.
        path: The corpus file.
        train_end: Whether the appended EOS is trained; None = if the last part is.
        src_features: Features of each source word, until `inferfeats` moves them to the tokens; None = no features.
        closed: The text has its own end (a chat template closed the last answer), so no EOS is appended.
        align: (source, target) pairs of aligned tokens or words, according to `align_unit`; None = unknown.
        encoded: Its ids, if the corpus is tokenised; there is no text then.
        chosen: The answer is the chosen one of two, or labelled as desirable; None = no preference data.
        rejected: The same prompt with the rejected answer.
        pair: Number that identifies the two answers of a pair during transforms.
        part: Number of the example within its record, from 0: a conversation may have several training texts.
    """

    src: list[Segment]
    tgt: list[Segment] = field(default_factory=list)
    corpus: str = ""
    line: int = 0
    path: Path | None = None
    closed: bool = False
    train_end: bool | None = None
    src_features: list[list[str]] | None = None
    align: list[tuple[int, int]] | None = None
    encoded: Encoded | None = None
    chosen: bool | None = None
    rejected: Example | None = None
    pair: int | None = None
    part: int = 0

    @classmethod
    def of_tokens(cls, encoded: Encoded, vocabs: tuple[Vocab, Vocab], *, corpus: str, line: int) -> Example:
        """Rebuild an example from ids; `vocabs` are those of source and target."""
        sides = [side for side in (encoded.src, encoded.tgt) if side is not None]
        src, *tgt = [
            [Segment(tokens=[vocab[id_] for id_ in ids.tolist()])]
            for ids, vocab in zip(sides, vocabs[-len(sides) :], strict=True)
        ]
        return cls(src=src, tgt=tgt[0] if tgt else [], corpus=corpus, line=line)


def text_of(side: Sequence[Segment]) -> str:
    """The text of a side, without tokens that a template has inserted."""
    return side[0].text or "" if len(side) == 1 else "".join(segment.text or "" for segment in side)


def rewrite(side: Sequence[Segment], change: Callable[[str], str]) -> None:
    """Change every text of a side in place; with several parts, white space around each is kept, since it is layout."""
    for segment in side:
        if segment.text is None:
            continue
        if len(side) == 1:
            segment.text = change(segment.text)
        elif core := segment.text.strip():
            before, after = segment.text.split(core, 1)
            segment.text = f"{before}{change(core)}{after}"


def rewrite_both(example: Example, src: Callable[[str], str], tgt: Callable[[str], str]) -> Example:
    """Change the texts of both sides in place."""
    rewrite(example.src, src)
    rewrite(example.tgt, tgt)
    return example


def words(text: str) -> list[str]:
    """Words as OpenNMT-py counts them: split at every single space or line break."""
    return text.replace("\n", " ").split(" ")


def num_tokens(side: Iterable[Segment], split: Callable[[str], list[str]] = str.split) -> int:
    """Tokens of a side; words, as `split` finds them, where it is not tokenised yet."""
    return sum(len(split(segment.text or "")) if (number := segment.num_tokens) is None else number for segment in side)


class Encoder:
    """Converts the tokens of examples to ids.

    A language model's sequence is [bos] + source + target + [eos], an encoder-decoder's target start tokens + target +
    [eos]; `tgt` is that without its last token, `labels` without its first. A token is trained if its segment is, EOS
    if the last segment is (or as the example specifies), and so are all start tokens but the first. Start tokens and
    EOS are not added if a text has its own. A source gets its prefix and suffix (`Codec.source_frame`).

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
        self._start = _bytes(vocab.ids(codec.start_tokens))
        prefix, suffix = ((), ()) if self._is_lm else codec.source_frame
        self._src_prefix, self._src_suffix = (_bytes(self._src_vocab.ids(tokens)) for tokens in (prefix, suffix))
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
        head = self._start if not ids.startswith(self._start) else b""
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
        align = None
        if example.align is not None:
            shifts = len(head) // _WIDTH - 1, len(self._src_prefix) // _WIDTH
            align = _label_positions(example.align, shifts)
        return Encoded(src, sequence[:-1], labels[1:], unknown, features, align, trained)

    def _source(self, example: Example) -> tuple[Ids, Ids | None, int]:
        if not self._feature_vocabs:
            parts = [self._src_numbers(segment) for segment in example.src]
            ids = b"".join([part for part, _ in parts])
            if ids:
                ids = b"".join((self._src_prefix, ids, self._src_suffix))
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
    has_own_start = bool(codec.config.sequences.decoder_start)
    if vocab.bos_id is None and (specials.add_bos or pairs) and not has_own_start:
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


def _label_positions(pairs: list[tuple[int, int]], shifts: tuple[int, int]) -> Ids:
    """Convert (source, target) token pairs to (label, source), by the shifts of targets and of sources.

    With one start token, label t is target token t.
    """
    shift, src_shift = shifts
    rows = [(target + shift, source + src_shift) for source, target in pairs if target + shift >= 0]
    return np.array(rows, dtype=np.int32).reshape(-1, 2)
