"""Text sides of translation models on Hugging Face, by the class of their tokeniser.

| class | its source | pieces and ids |
|---|---|---|
| `NllbTokenizer`, `MBart50Tokenizer` | language, text, end | sentencepiece.bpe.model, fairseq's ids |
| `MBartTokenizer` | text, end, language | sentencepiece.bpe.model, fairseq's ids |
| `M2M100Tokenizer` | language, text, end | sentencepiece.bpe.model, vocab.json, then languages |
| `MarianTokenizer` | target language if there are several, text, end | source.spm, target.spm, vocab.json |

The first two and mBART's may also come as a tokenizer.json. What the decoder is given is in config.json and
generation_config.json (`decoding_tokens`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats import language_codes
from onmt_llm.checkpoint.formats.byte_level_bpe import VOCABULARY_FILE
from onmt_llm.checkpoint.formats.imported import ImportedTokenizer
from onmt_llm.config.checkpoint import CheckpointConfig, LanguageTokens, SequenceTokens, SpecialTokens, TokenizerSpec
from onmt_llm.errors import CheckpointError
from onmt_llm.text.codec import Codec
from onmt_llm.text.languages import SRC_LANG, TGT_LANG
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.vocab import Vocab

FAIRSEQ_FILE = "sentencepiece.bpe.model"
SOURCE_FILE, TARGET_FILE = "source.spm", "target.spm"
TARGET_VOCABULARY_FILE = "target_vocab.json"
_FAIRSEQ_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
"""fairseq's first tokens; SentencePiece has <unk>, <s> and </s> there, so that all other pieces move by one."""
_PREFIX = SequenceTokens(src_prefix=[SRC_LANG], src_suffix=["</s>"])
_SUFFIX = SequenceTokens(src_suffix=["</s>", SRC_LANG])
_LANGUAGE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}|__[a-z_]+__|>>.+<<")


@dataclass(frozen=True)
class TextSide:
    """What a class of tokenisers adds to a source, and its languages.

    Attributes:
        sequences: Tokens around a source.
        codes: Its languages, where the files do not list them.
    """

    sequences: SequenceTokens
    codes: Sequence[str] = ()


MARIAN_TOKENIZER, M2M_TOKENIZER = "MarianTokenizer", "M2M100Tokenizer"
SIDES = {
    "NllbTokenizer": TextSide(_PREFIX, language_codes.NLLB_LANGUAGES),
    "MBart50Tokenizer": TextSide(_PREFIX, language_codes.MBART_50_LANGUAGES),
    "MBartTokenizer": TextSide(_SUFFIX, language_codes.MBART_LANGUAGES),
    M2M_TOKENIZER: TextSide(_PREFIX, language_codes.M2M_100_LANGUAGES),
    MARIAN_TOKENIZER: TextSide(SequenceTokens(src_suffix=["</s>"])),
}
"""By the name of the class in transformers, without "Fast"."""


def class_of(model_dir: Path, stated: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The class in `SIDES` of a directory's tokeniser, by its name in the JSON files or by the kind of model.

    Args:
        model_dir: The directory.
        stated: tokenizer_config.json.
        config: config.json.
    """
    for name in (stated.get("tokenizer_class"), config.get("tokenizer_class")):
        if str(name).removesuffix("Fast") in SIDES:
            return str(name).removesuffix("Fast")
    by_model = {
        "marian": MARIAN_TOKENIZER,
        "m2m_100": M2M_TOKENIZER if (model_dir / VOCABULARY_FILE).is_file() else "NllbTokenizer",
        "mbart": "MBart50Tokenizer" if config.get("decoder_start_token_id") == 2 else "MBartTokenizer",
    }
    return by_model.get(str(config.get("model_type")))


def from_pieces(name: str, file: Path, stated: Mapping[str, Any]) -> ImportedTokenizer:
    """The tokeniser of a class in `SIDES` from SentencePiece files.

    Args:
        name: The class.
        file: Its SentencePiece model; of a Marian model, that of the source.
        stated: tokenizer_config.json and special_tokens_map.json.

    Raises:
        CheckpointError: A file beside it is missing, or the model is of another kind.
        DataError: A file cannot be read.
    """
    if name == MARIAN_TOKENIZER:
        return _marian(file.parent, stated)
    pieces = SentencePieceTokenizer(file).vocab_tokens()
    if name == M2M_TOKENIZER:
        codes = language_codes.WMT_21_LANGUAGES if stated.get("language_codes") == "wmt21" else SIDES[name].codes
        tokens = [*_table(file.parent / VOCABULARY_FILE), *(f"__{code}__" for code in codes)]
    else:
        if pieces[:3] != ["<unk>", "<s>", "</s>"]:
            raise CheckpointError(
                f"The first pieces of an {name} must be <unk>, <s> and </s>, but those of {file} are "
                f"{', '.join(pieces[:3])}."
            )
        named = [token for token in special_tokens(stated) if _LANGUAGE.fullmatch(token)]
        tokens = [*_FAIRSEQ_SPECIALS, *pieces[3:], *(named or SIDES[name].codes), "<mask>"]
    return ImportedTokenizer(
        tokens=tokens,
        specials=SpecialTokens(pad="<pad>", add_bos=False),
        spec=TokenizerSpec(kind="sentencepiece", file=FAIRSEQ_FILE),
        files={FAIRSEQ_FILE: file},
    )


def _marian(model_dir: Path, stated: Mapping[str, Any]) -> ImportedTokenizer:
    """Two SentencePiece models with one vocabulary, or with one of each (`separate_vocabs`)."""
    files = {name: model_dir / name for name in (SOURCE_FILE, TARGET_FILE)}
    for file in files.values():
        if not file.is_file():
            raise CheckpointError(
                f"A {MARIAN_TOKENIZER} must have {SOURCE_FILE} and {TARGET_FILE}, but there is no {file}."
            )
    tokens, target = _table(model_dir / VOCABULARY_FILE), model_dir / TARGET_VOCABULARY_FILE
    has_two = stated.get("separate_vocabs", target.is_file())
    return ImportedTokenizer(
        tokens=_table(target) if has_two else tokens,
        src_tokens=tokens if has_two else None,
        specials=SpecialTokens(bos=None, pad="<pad>", add_bos=False),
        spec=TokenizerSpec(kind="sentencepiece", file=TARGET_FILE),
        src_spec=TokenizerSpec(kind="sentencepiece", file=SOURCE_FILE),
        files=files,
    )


def tokenizer_class(config: CheckpointConfig) -> str | None:
    """The class in `SIDES` of a checkpoint's tokeniser; None = another."""
    if config.tokenizer.file == TARGET_FILE:
        return MARIAN_TOKENIZER
    tokens, sequences = set(config.languages.tokens.values()), config.sequences
    for name, side in SIDES.items():
        forms = (_SUFFIX, side.sequences) if name == "NllbTokenizer" else (side.sequences,)
        codes = {f"__{code}__" if name == M2M_TOKENIZER else code for code in side.codes}
        if tokens & codes and sequences.model_copy(update={"decoder_start": []}) in forms:
            return name
    return None


def settings_of(name: str, codec: Codec) -> dict[str, Any]:
    """What tokenizer_config.json says about the class and its languages."""
    languages = codec.config.languages
    if name == MARIAN_TOKENIZER:
        return {"tokenizer_class": name, "separate_vocabs": not codec.shares_vocab}
    settings: dict[str, Any] = {"tokenizer_class": name, "src_lang": languages.src, "tgt_lang": languages.tgt}
    if name == "NllbTokenizer":
        settings["legacy_behaviour"] = not codec.config.sequences.src_prefix
    return (
        settings if name == M2M_TOKENIZER else {**settings, "additional_special_tokens": [*languages.tokens.values()]}
    )


def piece_files(name: str, directory: Path, codec: Codec) -> dict[str, Path | str]:
    """The files from which `from_pieces` makes a tokeniser, by name: paths to copy, or contents."""
    files: dict[str, Path | str] = {}
    for spec in (codec.config.tokenizer, codec.config.src_tokenizer):
        if spec is not None and spec.file is not None:
            files[spec.file] = directory / spec.file
    if name == MARIAN_TOKENIZER:
        tables = {VOCABULARY_FILE: list(codec.src_vocab)}
        tables |= {} if codec.shares_vocab else {TARGET_VOCABULARY_FILE: list(codec.vocab)}
    elif name == M2M_TOKENIZER:
        first = min(map(codec.vocab.id, codec.config.languages.tokens.values()))
        tables = {VOCABULARY_FILE: list(codec.vocab)[:first]}
    else:
        tables = {}
    for file, tokens in tables.items():
        files[file] = json.dumps({token: number for number, token in enumerate(tokens)}, ensure_ascii=False)
    return files


def set_languages(imported: ImportedTokenizer, name: str, stated: Mapping[str, Any]) -> None:
    """Store the languages of a model and the tokens around its sources, if its vocabulary has tokens of languages."""
    side, source = SIDES[name], imported.src_tokens or imported.tokens
    listed = {*special_tokens(stated), *side.codes, *(f"__{code}__" for code in side.codes)}
    tokens = [token for token in source if _LANGUAGE.fullmatch(token) and (name == MARIAN_TOKENIZER or token in listed)]
    codes = {token.strip("_<>"): token for token in tokens}
    if name == MARIAN_TOKENIZER:
        imported.sequences = side.sequences.model_copy(update={"src_prefix": [TGT_LANG] if codes else []})
    elif codes:
        imported.sequences = _SUFFIX if stated.get("legacy_behaviour") else side.sequences
    pair = [code if code in codes else None for code in (stated.get("src_lang"), stated.get("tgt_lang"))]
    # transformers states a source language even where nobody has chosen one
    src, tgt = pair if None not in pair else (None, None)
    imported.languages = LanguageTokens(tokens=codes, src=src, tgt=tgt)


def _table(file: Path) -> list[str]:
    return list(Vocab.read(file, SpecialTokens()))


def special_tokens(stated: Mapping[str, Any]) -> list[str]:
    """Special tokens without a role, as both names of the key list them."""
    found: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = stated.get(key)
        tokens = value if isinstance(value, list) else []
        contents = [token.get("content") if isinstance(token, dict) else token for token in tokens]
        found += [token for token in contents if isinstance(token, str)]
    return list(dict.fromkeys(found))
