"""The tokenisers behind one protocol, and `open_tokenizer`, which picks one from a checkpoint's `TokenizerSpec`.

Each library has a file of its own; all of them take text with real newlines, and give it back with real newlines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from onmt_llm.config.checkpoint import TokenizerSpec
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.decoding import StreamDecoder
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.bpe import BpeTokenizer
from onmt_llm.text.tokenizers.hf import HfTokenizer
from onmt_llm.text.tokenizers.onmt import OnmtTokenizer
from onmt_llm.text.tokenizers.pieces import Pieces
from onmt_llm.text.tokenizers.sp import SentencePieceTokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer

__all__ = [
    "BpeTokenizer",
    "HfTokenizer",
    "Numbering",
    "OnmtTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WhitespaceTokenizer",
    "continuations",
    "encode_each",
    "encode_pieces",
    "open_tokenizer",
]


class Tokenizer(Protocol):
    """Text <-> vocabulary pieces.

    Attributes:
        control_tokens: Pieces with a role (`</s>`, `<|im_end|>`) that the model file itself declares. No text is ever
            encoded into one of them, and they are left out of decoded text.
        restarts_after_control: Text behind any control token is encoded like the start of a text, with the dummy
            prefix, as the library that the model was trained with does it. (Behind `bos` it always is.)
    """

    @property
    def control_tokens(self) -> frozenset[str]: ...

    @property
    def restarts_after_control(self) -> bool: ...

    @property
    def identity(self) -> str:
        """A hash of the model file and all options: two tokenisers that share it make the same pieces of any text."""
        ...

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        """Pieces of a text.

        Args:
            text: Any text; what looks like a control token or a marker is text too.
            continuation: The text goes on where another one ended: no dummy prefix is put before it.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        """Pieces of each text; the fast way for many."""
        ...

    def decode(self, tokens: Sequence[str]) -> str:
        """The text of pieces. The caller has taken out control tokens."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """A fresh decoder for one answer that comes token by token."""
        ...

    def vocab_tokens(self) -> list[str] | None:
        """The model's own pieces in id order; None where it has no vocabulary of its own."""
        ...

    def check_newline(self) -> None:
        """Raise DataError where a line break would be lost without a word."""
        ...


@runtime_checkable
class Numbering(Protocol):
    """A tokeniser that gives its pieces by number, which is faster than as strings."""

    def encode_pieces(self, texts: Sequence[str], *, continuation: bool = False) -> list[Pieces | list[str]]:
        """Pieces of each text, the same as `encode` gives; as strings where numbers cannot say them."""
        ...


def open_tokenizer(spec: TokenizerSpec, directory: str | Path) -> Tokenizer:
    """The tokeniser that a checkpoint names.

    Args:
        spec: Kind, file and options.
        directory: What `spec.file` is relative to.

    Raises:
        DataError: Its file is missing or unreadable.
        ConfigError: The library does not know one of the options, or a needed file is not named.
        UnsupportedError: The library is not installed, or the model needs what we cannot do.
    """
    if spec.kind == "whitespace":
        return WhitespaceTokenizer()
    file = None if spec.file is None else _existing(Path(directory) / spec.file, spec.kind)
    if spec.kind == "onmt_tokenize":
        return _open_onmt(file, spec)
    if file is None:
        raise ConfigError(f"A tokeniser of kind '{spec.kind}' must name its model `file`, but names none.")
    kinds: dict[str, Callable[..., Tokenizer]] = {
        "sentencepiece": SentencePieceTokenizer,
        "bpe": BpeTokenizer,
        "huggingface": HfTokenizer,
    }
    try:
        return kinds[spec.kind](file, **spec.options)
    except TypeError as error:
        raise ConfigError(f"The options of the '{spec.kind}' tokeniser are wrong: {error}.") from error


def brings_vocabulary(spec: TokenizerSpec | None) -> bool:
    """Whether a tokeniser's own pieces can be the vocabulary of a new model."""
    if spec is None:
        return False
    return spec.kind in ("sentencepiece", "huggingface") or (spec.kind == "onmt_tokenize" and _is_plain(spec))


def _is_plain(spec: TokenizerSpec) -> bool:
    """Whether pyonmttok would hand the text to SentencePiece as it is."""
    options = spec.options
    passes = options.get("mode") == "none" and options.get("subword_type") == "sentencepiece"
    return passes and spec.file is not None and set(options) <= {"mode", "subword_type"}


def _open_onmt(file: Path | None, spec: TokenizerSpec) -> Tokenizer:
    # In mode "none" pyonmttok cuts the text at every ｟...｠ before SentencePiece sees it, and leaves byte pieces apart
    # when it decodes; SentencePiece itself gives the same pieces without these two faults.
    if file is not None and _is_plain(spec):
        return SentencePieceTokenizer(file)
    return OnmtTokenizer(file, dict(spec.options))


def _existing(file: Path, kind: str) -> Path:
    if not file.is_file():
        raise DataError(f"The model file of the '{kind}' tokeniser must exist, but there is none at {file}.")
    with file.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise DataError(
                f"{file} is a Git LFS pointer, not the tokeniser's model.", hint="run `git lfs pull` where it came from"
            )
    return file


def encode_each(tokenizer: Tokenizer, segments: Sequence[Segment], *, bos: str | None = None) -> list[list[str]]:
    """Pieces of each segment of one example, as parts of one text (see `continuations`); those that have tokens keep
    them."""
    return [
        tokenizer.encode(segment.text or "", continuation=goes_on) if segment.tokens is None else list(segment.tokens)
        for segment, goes_on in zip(segments, continuations(tokenizer, segments, bos=bos), strict=True)
    ]


def continuations(tokenizer: Tokenizer, segments: Sequence[Segment], *, bos: str | None = None) -> list[bool]:
    """Which segments of one example go on where another one ended.

    A dummy prefix comes only at the start, behind `bos`, and where the tokeniser puts one behind every control token.

    Args:
        tokenizer: Encodes the segments that are text.
        segments: In order.
        bos: The model's begin-of-sequence token.
    """
    restart = True
    goes_on = []
    for segment in segments:
        goes_on.append(not restart)
        if segment.text is not None:
            restart = restart and not segment.text
        elif segment.tokens:
            restart = tokenizer.restarts_after_control or segment.tokens[-1] == bos
    return goes_on


def encode_pieces(
    tokenizer: Tokenizer, texts: Sequence[str], *, continuation: bool = False
) -> Sequence[Pieces | list[str]]:
    """Pieces of each text, by number where the tokeniser can."""
    if isinstance(tokenizer, Numbering):
        return tokenizer.encode_pieces(texts, continuation=continuation)
    if continuation:
        return [tokenizer.encode(text, continuation=True) for text in texts]
    return tokenizer.encode_batch(texts)
