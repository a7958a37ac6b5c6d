"""`open_tokenizer`: the tokeniser that a checkpoint's `TokenizerSpec` describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onmt_llm.config.checkpoint import TokenizerSpec
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.bpe import BpeTokenizer
from onmt_llm.text.tokenizers.huggingface import HfTokenizer
from onmt_llm.text.tokenizers.missing import MissingTokenizer
from onmt_llm.text.tokenizers.pyonmttok import OnmtTokenizer
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer


def open_tokenizer(spec: TokenizerSpec, directory: str | Path) -> Tokenizer:
    """Open the tokeniser of a checkpoint.

    Args:
        spec: Kind, file and options.
        directory: The directory of `spec.file`.

    Raises:
        DataError: Its file is missing or unreadable.
        ConfigError: The library does not know one of the options, or the spec names no file but needs one.
        UnsupportedError: The library is not installed, or the model needs something that is not supported.
    """
    if spec.kind == "whitespace":
        return WhitespaceTokenizer()
    if spec.kind == "none":
        return MissingTokenizer()
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
    """Whether the pieces of a tokeniser can be the vocabulary of a new model."""
    if spec is None:
        return False
    return spec.kind in ("sentencepiece", "huggingface") or (spec.kind == "onmt_tokenize" and _is_plain(spec))


def _is_plain(spec: TokenizerSpec) -> bool:
    """Whether pyonmttok would pass the text to SentencePiece unchanged."""
    options = spec.options
    passes = options.get("mode") == "none" and options.get("subword_type") == "sentencepiece"
    return passes and spec.file is not None and set(options) <= {"mode", "subword_type"}


def _open_onmt(file: Path | None, spec: TokenizerSpec) -> Tokenizer:
    # In mode "none" pyonmttok splits the text at every ｟...｠ before SentencePiece sees it, and decodes byte pieces
    # separately. SentencePiece itself gives the same pieces without these two faults.
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
