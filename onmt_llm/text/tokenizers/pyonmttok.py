"""`OnmtTokenizer`: OpenNMT's Tokenizer library (pyonmttok), with a BPE or SentencePiece model or without subwords."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.checksums import fingerprint
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.optional import require
from onmt_llm.text.decoding import BYTE_PIECE, ByteStreamDecoder, StreamDecoder, byte_level_bytes, to_byte_level
from onmt_llm.text.placeholders import NEWLINE, code_point, from_line, to_line

_MODEL_OPTION = {"bpe": "bpe_model_path", "sentencepiece": "sp_model_path"}
# pyonmttok keeps every balanced ｟...｠ together, and interprets its own `｟mrk_...｠`. Only plain names (`｟ent_1｠`,
# placeholders of translation models) and our placeholders are passed on; other opening brackets are escaped. It stops
# at the first zero byte and drops other control characters and U+FEFF, so these are escaped too. Where it annotates
# words, it replaces the annotation characters in a text by similar ones: these are escaped as well. (It also replaces
# the full-width characters ％ ＃ ：, which its models have learned; the option no_substitution keeps them.)
_UNSAFE = r"｟(?!newline｠|U\+[0-9A-F]+｠|(?!mrk_)\w+｠)|[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]"
_MARKS = "|[￭￨▁]"
_ANNOTATIONS = ("joiner_annotate", "spacer_annotate")


class OnmtTokenizer:
    """pyonmttok.

    Args:
        file: BPE or SentencePiece model; None = no subwords.
        options: `subword_type` ("bpe" or "sentencepiece"), `gpt2_pretok` (text is first written in GPT-2's byte
            alphabet, so nothing is lost), `training` (use BPE dropout and sampling), and the arguments of
            pyonmttok.Tokenizer.
        content: Content of the model file, if the file may no longer exist.

    Raises:
        ConfigError: An option is unknown or has a wrong value.
        DataError: The model file cannot be read.
    """

    control_tokens: frozenset[str] = frozenset()
    restarts_after_control = False

    def __init__(
        self, file: str | Path | None, options: Mapping[str, Any] | None = None, content: bytes | None = None
    ) -> None:
        rest = dict(options or {})
        self._byte_level = bool(rest.pop("gpt2_pretok", False))
        self._training = bool(rest.pop("training", False))
        self._joiner: str = rest.get("joiner", "￭")
        self._joins = bool(rest.get("joiner_annotate"))
        self._reversible = any(rest.get(option) for option in _ANNOTATIONS)
        self._unsafe = re.compile(_UNSAFE + _MARKS if self._reversible else _UNSAFE)
        self._model = _open(file, rest) if content is None else _open_content(content, rest)
        if content is None and file is not None:
            content = Path(file).read_bytes()
        self._arguments = (file, dict(options or {}), content)
        self.fingerprint = fingerprint(type(self).__name__, content, self._arguments[1])

    def __reduce__(self) -> tuple[type[OnmtTokenizer], tuple[Any, ...]]:
        # the library's object cannot be pickled, but data workers need a copy, even if its file no longer exists
        return OnmtTokenizer, self._arguments

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        if self._byte_level:
            tokens = self._model(to_byte_level(text), training=self._training)
            # OpenNMT-py writes an empty line as two tokens, each of them a `｟newline｠`
            return [part for token in tokens for part in (["Ċ", "Ċ"] if token == "ĊĊ" else [token])]
        line = to_line(text.replace("\t", " "))
        return self._model(self._unsafe.sub(lambda match: code_point(match[0]), line), training=self._training)

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Iterable[str]) -> str:
        if self._byte_level:
            return ByteStreamDecoder(self._byte_level_piece).decode(tokens)
        line = self._model.detokenize(list(self._spell_bytes(tokens)))
        return from_line(line if self._reversible else re.sub(f" ?{NEWLINE} ?", NEWLINE, line))

    def stream_decoder(self) -> StreamDecoder:
        return ByteStreamDecoder(self._byte_level_piece) if self._byte_level else OnmtStreamDecoder(self)

    def is_byte(self, token: str) -> bool:
        """Whether a piece, without joiner and spacer, is one byte."""
        return BYTE_PIECE.fullmatch(token.strip(self._joiner + "▁")) is not None

    def vocab_tokens(self) -> list[str] | None:
        return None

    def check_newline(self) -> None:
        """Line breaks are `｟newline｠` or `Ċ` and are never lost here."""

    def _byte_level_piece(self, token: str) -> bytes:
        return byte_level_bytes(token.replace(self._joiner, ""))

    def _spell_bytes(self, tokens: Iterable[str]) -> Iterator[str]:
        """Join runs of byte pieces to the characters that they spell; pyonmttok would leave `<0xE2>` as it is."""
        run: list[str] = []
        for token in tokens:
            if run and not (self.is_byte(token) and self._continues(run[-1], token)):
                yield self._spell(run)
                run = []
            if self.is_byte(token):
                run.append(token)
            else:
                yield token
        if run:
            yield self._spell(run)

    def _continues(self, left: str, right: str) -> bool:
        if self._joins:
            return left.endswith(self._joiner) or right.startswith(self._joiner)
        return not right.startswith("▁")

    def _spell(self, run: list[str]) -> str:
        spelled = bytes(int(match[1], 16) for token in run if (match := BYTE_PIECE.search(token)))
        before, after = BYTE_PIECE.split(run[0])[0], BYTE_PIECE.split(run[-1])[-1]
        return before + to_line(spelled.decode("utf-8", "replace")) + after


class OnmtStreamDecoder:
    """Decodes all tokens so far at each step, and gives the new part of the text.

    The library's rules about spaces and case depend on neighbouring tokens; the answers are as short as a sentence.
    """

    def __init__(self, tokenizer: OnmtTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[str] = []
        self._given = 0

    def push(self, token: str) -> str:
        self._tokens.append(token)
        # the next piece may complete the character of this one
        return "" if self._tokenizer.is_byte(token) else self._new()

    def flush(self) -> str:
        return self._new()

    def _new(self) -> str:
        text = self._tokenizer.decode(self._tokens)
        new = text[self._given :]
        self._given = len(text)
        return new


def _open_content(content: bytes, options: dict[str, Any]) -> Any:
    """Open a model from its content; the library itself reads only files."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        file.write_bytes(content)
        return _open(file, options)


def _open(file: str | Path | None, options: dict[str, Any]) -> Any:
    library = require("pyonmttok", "transform onmt_tokenize")
    subword_type = options.pop("subword_type", "none")
    if subword_type != "none":
        if subword_type not in _MODEL_OPTION or file is None:
            raise ConfigError(
                f"The subword type of onmt_tokenize must be none, or bpe or sentencepiece with a model, but is "
                f"'{subword_type}' with {file or 'no model'}."
            )
        options[_MODEL_OPTION[subword_type]] = str(file)
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    try:
        return library.Tokenizer(options.pop("mode", "none"), **options)
    except TypeError as error:
        raise ConfigError(
            f"onmt_tokenize takes the arguments of pyonmttok.Tokenizer, but was given: {given}."
        ) from error
    except ValueError as error:
        kind = DataError if "Unable to open" in str(error) else ConfigError
        raise kind(f"pyonmttok refuses its options ({given}): {str(error).rstrip('.')}.") from error
