"""The text side of a model as metadata of a GGUF file: `tokenizer` backwards.

Byte-level BPE becomes kind `gpt2`; SentencePiece's BPE, from a tokenizer.model or a tokenizer.json, kind `llama`; and
SentencePiece's Unigram kind `t5`.
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from onmt_llm.checkpoint.formats.gguf.pre_tokenizer import keeps_text, pre_tokenizer_name
from onmt_llm.checkpoint.formats.gguf.tokenizer import CONTROL, NORMAL, USER_DEFINED
from onmt_llm.checkpoint.formats.huggingface.families.base import Values
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec
from onmt_llm.text.tokenizers.sentencepiece_proto import (
    BPE,
    BYTE,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    SentencePieceFacts,
    read_facts,
)
from onmt_llm.text.vocab import unused_token

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def tokenizer_keys(codec: Codec, directory: Path) -> Values:
    """The metadata below `tokenizer.`.

    Args:
        codec: The text side of the model.
        directory: Holds the tokeniser's file.

    Raises:
        UnsupportedError: llama.cpp has no tokeniser that splits a text in the same way.
    """
    spec = codec.config.tokenizer
    if not (codec.shares_vocab and codec.shares_tokenizer):
        raise UnsupportedError("A GGUF file has one vocabulary, but this model has another one for its source side.")
    if spec.kind == "huggingface" and spec.file is not None:
        keys = _from_json(codec, directory / spec.file)
    elif spec.kind == "sentencepiece" and spec.file is not None:
        keys = _from_sentencepiece(codec, directory / spec.file)
    else:
        raise UnsupportedError(
            f"The tokeniser of a GGUF file must be SentencePiece or a byte-level BPE, but this one is of kind "
            f"'{spec.kind}'."
        )
    return {**{f"ggml.{key}": value for key, value in {**keys, **_special_tokens(codec)}.items()}, **_template(codec)}


def _special_tokens(codec: Codec) -> Values:
    """Ids of the special tokens, and what is added to a text.

    A key that is missing has a default in llama.cpp (11 is the end token of a byte-level BPE), so there is always an
    end token: the first that ends an answer, or else the one that begins a text.
    """
    vocab = codec.vocab
    prefix, suffix = codec.source_frame
    ends = list(map(vocab.id, codec.stop_tokens))
    if vocab.eos_id is None and vocab.bos_id is not None:
        ends = ends or [vocab.bos_id]
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = {"bos_token_id": vocab.bos_id, "unknown_token_id": vocab.unk_id, "padding_token_id": vocab.pad_id}
    ids |= dict(zip(names, ends, strict=False))
    if len(ends) > len(names):
        logger.warning(
            "A GGUF file names at most %d tokens that end an answer: %s are left to `stop` of the programs that read "
            "it.",
            *(len(names), ", ".join(codec.stop_tokens[len(names) :])),
        )
    added = {"add_bos_token": prefix == [codec.config.specials.bos], "add_eos_token": suffix != []}
    return {**{key: number for key, number in ids.items() if number is not None}, **added}


def _template(codec: Codec) -> Values:
    text = codec.template.jinja if codec.template else None
    if codec.template and text is None:
        logger.warning("The chat template '%s' has no Jinja text and is not exported.", codec.config.template)
    return {} if text is None else {"chat_template": text}


def _tokens(codec: Codec) -> list[str]:
    """The tokens, and names for rows of the embedding without one."""
    tokens = list(codec.vocab)
    return tokens + [unused_token(row) for row in range(len(tokens), codec.config.model.vocab_size)]


def _kinds(codec: Codec, tokens: Sequence[str], known: Mapping[str, int]) -> list[int]:
    """The kind of each token; `known` has those of the tokeniser's pieces.

    Raises:
        UnsupportedError: The vocabulary lacks pieces: llama.cpp splits a text with those of the vocabulary only.
    """
    here = set(tokens)
    lost = [piece for piece, kind in known.items() if piece not in here and kind == NORMAL]
    if lost:
        raise UnsupportedError(
            f"All pieces of the tokeniser must be in the vocabulary of a GGUF file, but {len(lost):,} are not: "
            f"{', '.join(map(repr, lost[:5]))}."
        )
    control = codec.tokenizer.control_tokens
    return [CONTROL if token in control else known.get(token, UNUSED) for token in tokens]


def _from_json(codec: Codec, file: Path) -> Values:
    """Keys of a tokenizer.json."""
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content["model"]
    changed = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model.get("type", "BPE") != "BPE" or "merges" not in model or changed:
        kind = ", ".join(changed) or model.get("type")
        raise UnsupportedError(f"The tokenizer.json of a GGUF file must be a plain BPE, but {file} has {kind}.")
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    kinds = dict.fromkeys(model["vocab"], NORMAL)
    kinds |= {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in content["added_tokens"]}
    tokens = _tokens(codec)
    if "ByteLevel" in json.dumps(content.get("decoder")):
        if content.get("normalizer"):
            _warn_of_normalisation(file)
        return {
            "model": "gpt2",
            "pre": pre_tokenizer_name(content, file),
            "tokens": tokens,
            "token_type": _kinds(codec, tokens, kinds),
            "merges": [" ".join(pair) for pair in pairs],
        }
    kinds |= dict.fromkeys(_BYTES & kinds.keys(), BYTE)
    if model.get("unk_token"):
        kinds[model["unk_token"]] = UNKNOWN
    scores = _scores_of_merges(pairs, model["vocab"], file)
    prefixed = keeps_text(content, file, crosses_words=any("▁" in token.lstrip("▁") for token in model["vocab"]))
    return _spm_keys(codec, kinds, scores, add_space_prefix=prefixed)


def _warn_of_normalisation(file: Path) -> None:
    logger.warning(
        "%s normalises text, llama.cpp does not: there, other Unicode forms of a character, and in SentencePiece "
        "models several spaces in succession, become other tokens.",
        file.name,
    )


def _warn_of_prefix(codec: Codec, kinds: Mapping[str, int]) -> None:
    """Where a text begins with a space in llama.cpp only: after control tokens, and before another space."""
    template = codec.template.control_tokens if codec.template else frozenset[str]()
    users = {piece for piece, kind in kinds.items() if kind == USER_DEFINED}
    others = (template | users).difference((codec.config.specials.bos, codec.config.specials.eos))
    if others and not codec.tokenizer.restarts_after_control:
        logger.warning("llama.cpp puts a space before the text after %s, this model does not.", min(others))
    if "".join(codec.tokenizer.encode(" a")) == "▁a":
        logger.warning("llama.cpp puts a space before a text that begins with one, this model does not.")


def _scores_of_merges(pairs: Sequence[Sequence[str]], vocab: Collection[str], file: Path) -> dict[str, float]:
    """Scores that make SentencePiece's algorithm merge in the order of a list of merges.

    That algorithm joins the two neighbours that form the piece with the highest score, whichever these two are.

    Raises:
        UnsupportedError: The list lacks ways to form its pieces, or prefers some of them, which scores cannot say.
    """
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, []).append(rank)
    for piece, here in ranks.items():
        ways = sum(piece[:at] in vocab and piece[at:] in vocab for at in range(1, len(piece)))
        if ways != len(here) or max(here) - min(here) + 1 != len(here):
            raise UnsupportedError(
                f"The merges of {file} must be those of a SentencePiece model, all ways to form a piece one after the "
                f"other, but those of {piece!r} are not."
            )
    return {piece: -float(min(here)) for piece, here in ranks.items()}


def _from_sentencepiece(codec: Codec, file: Path) -> Values:
    """Keys of a tokenizer.model."""
    import sentencepiece

    content = file.read_bytes()
    facts = read_facts(content)
    if facts.model_type not in (BPE, UNIGRAM):
        raise UnsupportedError(
            f"The SentencePiece model of a GGUF file must be a BPE or a Unigram model, but {file} is neither."
        )
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(content)
    scores = {piece: float(model.get_score(number)) for number, (piece, _) in enumerate(facts.pieces)}
    if facts.model_type == UNIGRAM:
        return _unigram_keys(codec, facts, scores, file)
    if facts.charsmap or facts.remove_extra_whitespaces:
        _warn_of_normalisation(file)
    return _spm_keys(codec, dict(facts.pieces), scores, add_space_prefix=facts.add_dummy_prefix)


def _unigram_keys(codec: Codec, facts: SentencePieceFacts, scores: Mapping[str, float], file: Path) -> Values:
    """Keys of a Unigram model, whose normalisation llama.cpp has; T5's sentinels are unused tokens.

    Raises:
        UnsupportedError: It spells unknown characters in bytes, which llama.cpp does not with these models.
    """
    kinds = dict(facts.pieces)
    if BYTE in kinds.values():
        raise UnsupportedError(
            f"A Unigram model of SentencePiece must have no byte_fallback in a GGUF file, since llama.cpp has none for "
            f"it, but {file} has."
        )
    tokens = _tokens(codec)
    unused = dict.fromkeys((token for token in tokens if token not in kinds), UNUSED)
    return {
        "model": "t5",
        "pre": "default",
        "tokens": _spaced(tokens, kinds),
        "scores": [scores.get(token, 0.0) for token in tokens],
        "token_type": [
            unused.get(token, kind) for token, kind in zip(tokens, _kinds(codec, tokens, kinds), strict=True)
        ],
        "add_space_prefix": facts.add_dummy_prefix,
        "remove_extra_whitespaces": facts.remove_extra_whitespaces,
        **({"precompiled_charsmap": facts.charsmap} if facts.charsmap else {}),
    }


def _spaced(tokens: Sequence[str], kinds: Mapping[str, int]) -> list[str]:
    """The tokens as llama.cpp's converter writes them: those that a user defined have spaces."""
    return [token.replace("▁", " ") if kinds.get(token) == USER_DEFINED else token for token in tokens]


def _spm_keys(codec: Codec, kinds: Mapping[str, int], scores: Mapping[str, float], *, add_space_prefix: bool) -> Values:
    """Keys of a tokeniser with SentencePiece's algorithm.

    Raises:
        UnsupportedError: It has no pieces for bytes, without which llama.cpp fails at a character that is not in the
            vocabulary.
    """
    if not kinds.keys() >= _BYTES:
        raise UnsupportedError(
            "The SentencePiece model of a GGUF file must have a piece for each byte, but this one has not: llama.cpp "
            "fails at a character that is not in the vocabulary.",
            hint="train it with byte_fallback",
        )
    if add_space_prefix:
        _warn_of_prefix(codec, kinds)
    tokens = _tokens(codec)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": _spaced(tokens, kinds),
        "scores": [scores.get(token, 0.0) for token in tokens],
        "token_type": _kinds(codec, tokens, kinds),
        "add_space_prefix": add_space_prefix,
    }
