"""Reads the header of a SentencePiece model file: its normalisation and its pieces.

The library exposes little of this, and its schema needs protobuf. The format (varints, and byte strings with their
length) is simple enough to read here. Field numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

UNIGRAM, BPE = 1, 2
"""`model_type` of the two algorithms that choose subwords (3 = words, 4 = characters)."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass
class SentencePieceFacts:
    """Facts about one model; the defaults are those of the format.

    Attributes:
        pieces: (text, kind) in id order.
        model_type: The segmentation algorithm.
        charsmap: Normalisation rules; empty = none.
    """

    pieces: list[tuple[str, int]] = field(default_factory=list)
    model_type: int = 1
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    whitespace_as_suffix: bool = False


def read_facts(proto: bytes) -> SentencePieceFacts:
    """The facts of a serialised ModelProto."""
    facts = SentencePieceFacts()
    for number, value in _fields(proto):
        if number == _PIECES and isinstance(value, bytes):
            facts.pieces.append(_piece(value))
        elif number == _TRAINER and isinstance(value, bytes):
            trainer = dict(_fields(value))
            facts.model_type = _int(trainer.get(3, facts.model_type))
            facts.whitespace_as_suffix = bool(trainer.get(24, facts.whitespace_as_suffix))
        elif number == _NORMALIZER and isinstance(value, bytes):
            normalizer = dict(_fields(value))
            charsmap = normalizer.get(2, facts.charsmap)
            facts.charsmap = charsmap if isinstance(charsmap, bytes) else b""
            facts.add_dummy_prefix = bool(normalizer.get(3, facts.add_dummy_prefix))
            facts.remove_extra_whitespaces = bool(normalizer.get(4, facts.remove_extra_whitespaces))
            facts.escape_whitespaces = bool(normalizer.get(5, facts.escape_whitespaces))
    return facts


def _piece(message: bytes) -> tuple[str, int]:
    fields = dict(_fields(message))
    text = fields.get(1, b"")
    return (text if isinstance(text, bytes) else b"").decode("utf-8", "replace"), _int(fields.get(3, NORMAL))


def _int(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field in order; fixed-width numbers as bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(message, position)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}[kind]
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
