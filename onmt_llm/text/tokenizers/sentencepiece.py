"""`SentencePieceTokenizer`: SentencePiece models (Kudo and Richardson 2018), including LLaMA's."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from onmt_llm.checksums import fingerprint
from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.text.decoding import ByteStreamDecoder, sentencepiece_bytes
from onmt_llm.text.tokenizers.pieces import Pieces, PieceTable
from onmt_llm.text.tokenizers.sentencepiece_proto import read_facts
from onmt_llm.text.tokenizers.word_cache import WordCache, is_provable

# A serialised ModelProto with only normalizer_spec { add_dummy_prefix: false }. Protocol buffers merge concatenated
# messages, so a model followed by these bytes is the same model without the dummy prefix.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
# The same with remove_extra_whitespaces: false.
_KEEP_SPACES = b"\x1a\x02\x20\x00"
_MAX_THREADS = 4
_WORTH_THREADS = 64
"""Minimum number of texts for which threads are started."""


class SentencePieceTokenizer:
    """A SentencePiece model.

    These models treat the character `▁` (U+2581) in a text as a space, so decoding gives a space.

    Args:
        file: The `.model` file.
        nbest: Subword regularisation (Kudo 2018), for training only: sample among this many segmentations; -1 = all.
        alpha: Its smoothing parameter; 0 = no sampling.
        extra_ids: Number of T5's sentinels, control tokens after the pieces: `<extra_id_N>`, ..., `<extra_id_0>`.

    Raises:
        DataError: The file is not a SentencePiece model.
        UnsupportedError: The model marks spaces after words instead of before.
    """

    restarts_after_control = False

    def __init__(self, file: str | Path, *, nbest: int = 1, alpha: float = 0.0, extra_ids: int = 0) -> None:
        self._file = str(file)
        self._content = _read(Path(file))
        self._sentinels = [f"<extra_id_{number}>" for number in reversed(range(extra_ids))]
        self._model, self._pieces = _load(self._content, self._file)
        samples = alpha > 0 and nbest != 1
        self._sampling = {"enable_sampling": True, "nbest_size": nbest, "alpha": alpha} if samples else {}
        normalized = self._model.normalize("a  b")
        if normalized.endswith("▁"):
            raise UnsupportedError(
                f"{file} marks spaces after words (treat_whitespace_as_suffix), which is not supported."
            )
        self._has_dummy_prefix = normalized.startswith("▁")
        keeps_spaces = "a▁▁b" in normalized
        self._strip = ("one" if self._has_dummy_prefix else "none") if keeps_spaces else "all"

    @cached_property
    def fingerprint(self) -> str:
        sentinels = {"extra_ids": len(self._sentinels)} if self._sentinels else {}
        return fingerprint(type(self).__name__, self._content, {**self._sampling, **sentinels})

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        control = (piece for id_, piece in enumerate(self._pieces) if self._model.is_control(id_))
        return frozenset((*control, *self._sentinels))

    @cached_property
    def _continuing(self) -> Any:
        """The same model without the dummy prefix; loaded on demand."""
        if not self._has_dummy_prefix:
            return self._model
        return _from_proto(self._model.serialized_model_proto() + _NO_DUMMY_PREFIX)

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        model = self._continuing if continuation else self._model
        return model.encode(text, out_type=str, **self._sampling)

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        return self._model.encode(list(texts), out_type=str, num_threads=_threads(texts), **self._sampling)

    def encode_pieces(self, texts: Sequence[str], *, continuation: bool = False) -> list[Pieces | list[str]]:
        """Pieces of each text as numbers; as strings if the library samples, or if a piece is unknown and its number
        would lose its text."""
        if self._sampling:
            return [self.encode(text, continuation=continuation) for text in texts]
        ids = self._words.encode(texts, continuation=continuation) if self._words else [None] * len(texts)
        left = [text for text, each in zip(texts, ids, strict=True) if each is None]
        from_library = iter(self._by_library(left, continuation))
        return [next(from_library) if each is None else Pieces(self._table, each) for each in ids]

    def _by_library(self, texts: list[str], continuation: bool) -> list[Pieces | list[str]]:
        model, unknown = self._continuing if continuation else self._model, self._model.unk_id()
        return [
            model.encode(text, out_type=str) if unknown in ids else Pieces(self._table, ids.tobytes())
            for text, ids in zip(texts, _numbers(model, texts), strict=True)
        ]

    @cached_property
    def _table(self) -> PieceTable:
        return PieceTable(self._pieces)

    @cached_property
    def _words(self) -> WordCache | None:
        proto = self._model.serialized_model_proto()
        facts = read_facts(proto)
        if not is_provable(facts):
            return None
        plain, unknown = _from_proto(proto + _NO_DUMMY_PREFIX + _KEEP_SPACES), self._model.unk_id()

        def encode(text: str) -> bytes | None:
            ids = plain.encode(text, out_type=int)
            return None if unknown in ids else array("i", ids).tobytes()

        return WordCache(facts, encode)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_words"}

    def decode(self, tokens: Iterable[str]) -> str:
        return self.stream_decoder().decode(tokens)

    def stream_decoder(self) -> ByteStreamDecoder:
        return ByteStreamDecoder(sentencepiece_bytes, strip=self._strip)

    def vocab_tokens(self) -> list[str]:
        return [*self._pieces, *self._sentinels]

    def check_newline(self) -> None:
        pieces = self.encode("a\nb")
        known = all(self._model.piece_to_id(piece) != self._model.unk_id() for piece in pieces)
        if not known or self.decode(pieces) != "a\nb":
            raise DataError(
                f"The text has line breaks, but the SentencePiece model {self._file} would lose them.",
                hint="train it with byte_fallback, normalization_rule_name=identity and "
                "remove_extra_whitespaces=false, or keep ｟newline｠ out of the data",
            )


def _numbers(model: Any, texts: list[str]) -> list[array[int]]:
    return [array("i", ids) for ids in model.encode(texts, out_type=int, num_threads=_threads(texts))] if texts else []


def _threads(texts: Sequence[str]) -> int:
    return min(_MAX_THREADS, os.cpu_count() or 1) if len(texts) >= _WORTH_THREADS else 1


def _from_proto(proto: bytes) -> Any:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(proto)
    return model


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(str(file)) from error


def _load(content: bytes, file: str) -> tuple[Any, list[str]]:
    """The model and its pieces; those of a damaged file may not be valid UTF-8."""
    try:
        model = _from_proto(content)
        return model, [model.id_to_piece(id_) for id_ in range(len(model))]
    except (RuntimeError, UnicodeDecodeError) as error:
        raise _unreadable(file) from error


def _unreadable(file: str) -> DataError:
    return DataError(
        f"{file} must be a SentencePiece model, but cannot be read as one.",
        hint="a text vocabulary goes to src_vocab; a tokenizer.json is of kind 'huggingface'",
    )
