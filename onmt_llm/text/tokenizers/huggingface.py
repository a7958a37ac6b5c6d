"""`HfTokenizer`: a Hugging Face tokenizer.json, run by the `tokenizers` library."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from onmt_llm.checksums import fingerprint
from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.text.decoding import ByteStreamDecoder, byte_level_bytes, sentencepiece_bytes
from onmt_llm.text.vocab import tokens_by_id

MAX_GROWTH = 64
"""Maximum number of characters into which normalisation may turn one; NFKC and SentencePiece need up to 18."""

_JOINED = frozenset((".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"))
"""Pieces that the library's WordPiece decoder joins to the word before them, where it cleans up."""


class HfTokenizer:
    """A tokenizer.json whose pieces are byte-level (GPT-2), SentencePiece-like (Llama 2) or WordPiece (BERT).

    Special tokens are not recognised in text: `</s>` typed by a user is four ordinary characters.

    Args:
        file: The tokenizer.json.
        content: Its content, if the file is not written yet.

    Raises:
        DataError: The file cannot be read.
        UnsupportedError: Its pieces cannot be decoded one by one.
    """

    def __init__(self, file: str | Path, content: bytes | None = None) -> None:
        self._file = str(file)
        # kept in memory, because the file may be gone when its content is needed again
        self._content = _read(Path(file)) if content is None else content
        parsed = _parsed(self._content, self._file)
        added = parsed.get("added_tokens") or []
        self._model = _build(parsed, self._file)
        self.control_tokens = frozenset(token["content"] for token in added if token.get("special"))
        self._piece_bytes = _piece_decoder(parsed, self._file)
        self._has_dummy_prefix = self._prefixes("a", "▁a") or self._prefixes("a", "Ġa")
        spaces_words = self._piece_bytes("a") == b" a"
        self._strips_space = self._has_dummy_prefix or spaces_words
        self._plain = frozenset() if spaces_words else frozenset(token["content"] for token in added)

    @property
    def fingerprint(self) -> str:
        return fingerprint(type(self).__name__, self._content)

    def _prefixes(self, text: str, piece: str) -> bool:
        pieces = self._model.encode(text, add_special_tokens=False).tokens
        return "".join(pieces) == piece

    @cached_property
    def restarts_after_control(self) -> bool:
        """A `Prepend` normaliser or the Metaspace scheme "always" adds the dummy prefix after each special token."""
        if not self._has_dummy_prefix or not self.control_tokens:
            return False
        control = max(self.control_tokens)
        matching = _build(_parsed(self._content, self._file), self._file, match_special=True)
        pieces = matching.encode(f"{control}a", add_special_tokens=False).tokens
        return pieces[0] == control and "".join(pieces[1:]) in ("▁a", "Ġa")

    @cached_property
    def _continuing(self) -> Any:
        """The same model without the dummy prefix; built on demand."""
        if not self._has_dummy_prefix:
            return self._model
        return _build(_without_dummy_prefix(_parsed(self._content, self._file)), self._file)

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        model = self._continuing if continuation else self._model
        return model.encode(text, add_special_tokens=False).tokens

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        # the fast method gives only ids, no tokens
        pieces = self._pieces
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[pieces[id_] for id_ in encoding.ids] for encoding in encodings]

    def decode(self, tokens: Iterable[str]) -> str:
        return self.stream_decoder().decode(tokens)

    def stream_decoder(self) -> ByteStreamDecoder:
        return ByteStreamDecoder(self._to_bytes, strip="one" if self._strips_space else "none")

    def _to_bytes(self, token: str) -> bytes:
        return token.encode("utf-8") if token in self._plain else self._piece_bytes(token)

    @cached_property
    def _pieces(self) -> list[str]:
        return tokens_by_id(self._model.get_vocab(with_added_tokens=True))

    def vocab_tokens(self) -> list[str]:
        return list(self._pieces)

    def check_newline(self) -> None:
        pieces = self.encode("a\nb")
        if any(self._model.token_to_id(piece) is None for piece in pieces) or self.decode(pieces) != "a\nb":
            raise DataError(
                f"The text has line breaks, but the tokeniser {self._file} would lose them.",
                hint="keep ｟newline｠ out of the data, or use a byte-level tokeniser",
            )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} must be a tokenizer.json, but cannot be read ({error}).") from error


def _parsed(text: bytes, file: str) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} must be a tokenizer.json, but cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict) or "model" not in content:
        raise DataError(
            f"{file} must be a tokenizer.json with a `model`, but has none.",
            hint="a {token: id} table is a vocabulary; a SentencePiece model is of kind 'sentencepiece'",
        )
    growth = _growth(content.get("normalizer"))
    if growth > MAX_GROWTH:
        raise DataError(
            f"The normaliser of {file} may turn one character into at most {MAX_GROWTH}, but makes up to {growth:.3g}."
        )
    # the truncation and padding of a file belong to its earlier use; here nothing is truncated silently
    return {**content, "truncation": None, "padding": None}


def _growth(normaliser: Any) -> float:
    """Maximum number of characters into which a normaliser turns one."""
    if not isinstance(normaliser, dict):
        return 1
    kind = normaliser.get("type")
    if kind == "Sequence":
        return math.prod(max(_growth(step), 1) for step in normaliser.get("normalizers") or ())
    if kind == "Replace":
        pattern = normaliser.get("pattern")
        replaced = pattern.get("String") if isinstance(pattern, dict) else None  # else a regular expression
        return len(str(normaliser.get("content"))) / max(len(replaced or ""), 1)
    return _longest_entry(normaliser.get("precompiled_charsmap")) if kind == "Precompiled" else 1


def _longest_entry(table: Any) -> int:
    """Length of the longest text in a SentencePiece table: the size of a trie, the trie, zero-terminated texts."""
    try:
        raw = base64.b64decode(table or "")
        (size,) = struct.unpack("<I", raw[:4])
    except (ValueError, TypeError, struct.error):
        return 1  # the library will refuse it
    return max(len(text.decode("utf-8", "replace")) for text in raw[4 + size :].split(b"\0"))


def _build(content: dict[str, Any], file: str, *, match_special: bool = False) -> Any:
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"{file} must be a tokenizer.json that `tokenizers` can read, but it says: {error}.") from error
    model.encode_special_tokens = not match_special
    return model


def _piece_decoder(content: dict[str, Any], file: str) -> Callable[[str], bytes]:
    """The function from a piece to its bytes, according to the file's decoder."""
    decoder = content.get("decoder") or {}
    steps = {step.get("type") for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" in steps:
        return byte_level_bytes
    if steps <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and steps:
        return sentencepiece_bytes
    if steps == {"WordPiece"}:
        return partial(_word_piece_bytes, prefix=decoder.get("prefix", "##"), cleanup=bool(decoder.get("cleanup")))
    names = ", ".join(sorted(str(step or "none") for step in steps)) or "none"
    raise UnsupportedError(f"{file} must have a byte-level, SentencePiece-like or WordPiece decoder, but has: {names}.")


def _word_piece_bytes(piece: str, *, prefix: str, cleanup: bool) -> bytes:
    """Bytes of a piece that continues a word (`prefix`), or that begins one and so follows a space.

    `cleanup` is BERT's: no space before punctuation and English contractions.
    """
    if piece.startswith(prefix):
        return piece.removeprefix(prefix).encode("utf-8")
    return (piece if cleanup and piece in _JOINED else f" {piece}").encode("utf-8")


def _without_dummy_prefix(part: Any) -> Any:
    """A copy of (a part of) a tokenizer.json that adds no prefix to the text."""
    if isinstance(part, list):
        return [_without_dummy_prefix(item) for item in part if not _is_prepend(item)]
    if not isinstance(part, dict):
        return part
    changed = {
        key: None if _is_prepend(item) else item if key in ("model", "added_tokens") else _without_dummy_prefix(item)
        for key, item in part.items()
    }
    if part.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
        changed.pop("add_prefix_space", None)
    elif part.get("type") == "ByteLevel" and "add_prefix_space" in part:
        changed["add_prefix_space"] = False
    return changed


def _is_prepend(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"
