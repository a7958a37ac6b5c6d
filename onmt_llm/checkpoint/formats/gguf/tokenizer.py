"""Rebuild the tokeniser stored in a GGUF file as a file that its library reads.

`gpt2` kind: byte-level BPE -> tokenizer.json. `llama` kind: SentencePiece BPE -> tokenizer.model. `t5` kind:
SentencePiece Unigram -> spiece.model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onmt_llm.checkpoint.formats.byte_level_bpe import byte_level_bpe
from onmt_llm.checkpoint.formats.gguf.splitting import begins_with_bos, splitting
from onmt_llm.checkpoint.formats.imported import ImportedTokenizer
from onmt_llm.checkpoint.formats.t5_tokenizer import EXTRA_IDS, T5_FILE
from onmt_llm.checkpoint.formats.tokenizer_files import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, fit, set_template
from onmt_llm.config.checkpoint import SequenceTokens, SpecialTokens, TokenizerSpec
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.optional import require

Metadata = Mapping[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)
"""`tokenizer.ggml.token_type`; the numbers are SentencePiece's."""

_ROLES = {
    "gpt2": {},
    "llama": {"unknown": 0, "bos": 1, "eos": 2},
    "t5": {"padding": 0, "eos": 1, "unknown": 2},
}
"""For each kind that is read, the ids of special tokens where no key says them, as in llama.cpp."""
_OTHER_KINDS = {"bert": "WordPiece", "rwkv": "RWKV's", "none": "no tokeniser"}
"""Kinds that are not read."""


def read_tokenizer(metadata: Metadata, *, rows: int, start: int | None = None) -> ImportedTokenizer:
    """Vocabulary, tokeniser, special tokens and template of a GGUF file.

    Args:
        metadata: Of the file.
        rows: Rows of the embedding; the vocabulary gets exactly this many tokens.
        start: Id of the token that an encoder-decoder's targets begin with; None = it is a language model.

    Raises:
        CheckpointError: A required key is missing.
        UnsupportedError: The kind of tokeniser is not supported.
    """
    kind = _value(metadata, "model")
    if kind not in _READERS:
        raise UnsupportedError(
            f"The tokeniser of a GGUF file must be of kind gpt2 (byte-level BPE), llama (SentencePiece BPE) or t5 "
            f"(SentencePiece Unigram), but is '{kind}'{f' ({_OTHER_KINDS[kind]})' if kind in _OTHER_KINDS else ''}.",
            hint="convert the model's Hugging Face files instead (-source hf)",
        )
    imported = _READERS[kind](metadata)
    imported.tokens = fit(imported.tokens, rows)
    imported.specials = _specials(metadata, kind, imported.tokens)
    imported.stop_tokens = _other_stop_tokens(metadata, imported)
    if start is not None:
        imported.sequences = _sequences(metadata, imported, start)
    set_template(imported, metadata.get("tokenizer.chat_template"))
    return imported


def _value(metadata: Metadata, key: str) -> Any:
    try:
        return metadata[f"tokenizer.ggml.{key}"]
    except KeyError as error:
        raise CheckpointError(f"The GGUF file must have the key tokenizer.ggml.{key}, but does not.") from error


def _id(metadata: Metadata, role: str) -> int | None:
    default = _ROLES[_value(metadata, "model")].get(role)
    if role == "unknown" and UNKNOWN in (types := _types(metadata)):
        default = types.index(UNKNOWN)
    number = metadata.get(f"tokenizer.ggml.{role}_token_id", default)
    return None if number is None else int(number)


def _token(metadata: Metadata, tokens: Sequence[str], role: str) -> str | None:
    number = _id(metadata, role)
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None


def _specials(metadata: Metadata, kind: str, tokens: Sequence[str]) -> SpecialTokens:
    bos = _token(metadata, tokens, "bos")
    # llama.cpp's defaults if the key is missing: SentencePiece BPE, and LLaMA 3's and Mistral's tokenisers add bos.
    adds_bos = kind == "llama" or (kind == "gpt2" and begins_with_bos(_pre(metadata)))
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos))
    return SpecialTokens(
        unk=_token(metadata, tokens, "unknown"),
        bos=bos,
        eos=_token(metadata, tokens, "eos"),
        pad=_token(metadata, tokens, "padding"),
        add_bos=add_bos and bos is not None,
    )


def _other_stop_tokens(metadata: Metadata, imported: ImportedTokenizer) -> list[str]:
    """End-of-turn and end-of-message tokens, if the file has them besides eos."""
    ends = (_token(metadata, imported.tokens, role) for role in ("eot", "eom"))
    return [end for end in ends if end is not None and end != imported.specials.eos]


def _sequences(metadata: Metadata, imported: ImportedTokenizer, start: int) -> SequenceTokens:
    """The tokens around the texts of an encoder-decoder; eos follows a source unless a key says otherwise."""
    eos, tokens = imported.specials.eos, imported.tokens
    adds_eos = metadata.get("tokenizer.ggml.add_eos_token", True)
    if not 0 <= start < len(tokens):
        raise CheckpointError(
            f"decoder_start_token_id must be the id of one of the model's {len(tokens):,} tokens, but is {start}."
        )
    return SequenceTokens(src_suffix=[eos] if eos is not None and adds_eos else [], decoder_start=[tokens[start]])


def _pre(metadata: Metadata) -> str:
    return str(metadata.get("tokenizer.ggml.pre", "default"))


def _byte_level_bpe(metadata: Metadata) -> ImportedTokenizer:
    tokens, types = _value(metadata, "tokens"), _types(metadata)
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in _value(metadata, "merges"))]
    added = {
        token: kind == CONTROL for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)
    }
    content = byte_level_bpe(tokens, merges, splitting(_pre(metadata)), added)
    spec = TokenizerSpec(kind="huggingface", file=HUGGINGFACE_FILE)
    return ImportedTokenizer(tokens=tokens, spec=spec, blobs={HUGGINGFACE_FILE: content})


def _types(metadata: Metadata) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    return list(types) if types is not None else [NORMAL] * len(_value(metadata, "tokens"))


def _sentencepiece_bpe(metadata: Metadata) -> ImportedTokenizer:
    pieces = _pieces(metadata)
    spec = TokenizerSpec(kind="sentencepiece", file=SENTENCEPIECE_FILE)
    return ImportedTokenizer(
        tokens=pieces, spec=spec, blobs={SENTENCEPIECE_FILE: _sentencepiece(metadata, pieces, "BPE")}
    )


def _sentencepiece_unigram(metadata: Metadata) -> ImportedTokenizer:
    """T5's pieces, and its sentinels, which files have as unused tokens after the pieces."""
    tokens, types = _pieces(metadata), _types(metadata)
    count = max((number for number, kind in enumerate(types, 1) if kind != UNUSED), default=0)
    sentinels = EXTRA_IDS if len(tokens) - count >= EXTRA_IDS else 0
    spec = TokenizerSpec(kind="sentencepiece", file=T5_FILE, options={"extra_ids": sentinels} if sentinels else {})
    return ImportedTokenizer(
        tokens=[*tokens[:count], *(f"<extra_id_{number}>" for number in reversed(range(sentinels)))],
        spec=spec,
        blobs={T5_FILE: _sentencepiece(metadata, tokens[:count], "UNIGRAM")},
    )


def _pieces(metadata: Metadata) -> list[str]:
    """The pieces as in SentencePiece: those that a user defined have spaces in GGUF files."""
    tokens, types = _value(metadata, "tokens"), _types(metadata)
    return [
        token.replace(" ", "▁") if kind == USER_DEFINED else token for token, kind in zip(tokens, types, strict=True)
    ]


def _sentencepiece(metadata: Metadata, pieces: Sequence[str], model_type: str) -> bytes:
    """A SentencePiece model.

    Args:
        metadata: Of the file.
        pieces: As many of the tokens as are pieces.
        model_type: `BPE` or `UNIGRAM`.
    """
    schema = require("sentencepiece.sentencepiece_model_pb2", "a GGUF file with a SentencePiece tokeniser", "protobuf")
    model = schema.ModelProto()
    unknown, scores = _id(metadata, "unknown"), _value(metadata, "scores")
    for place, (token, kind) in enumerate(zip(pieces, _types(metadata), strict=False)):
        model.pieces.add(piece=token, score=scores[place], type=UNKNOWN if place == unknown else kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = getattr(schema.TrainerSpec, model_type)
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = "<0x0A>" in pieces
    for role, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number, piece = _id(metadata, key), _token(metadata, pieces, key)
        setattr(trainer, f"{role}_id", -1 if number is None else number)
        if piece is not None:
            setattr(trainer, f"{role}_piece", piece)
    normalizer.precompiled_charsmap = _charsmap(metadata)
    normalizer.name = "user_defined" if normalizer.precompiled_charsmap else "identity"
    normalizer.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))
    normalizer.escape_whitespaces = True
    return bytes(model.SerializeToString())


def _charsmap(metadata: Metadata) -> bytes:
    """SentencePiece's compiled normalisation, which GGUF files have as an array of bytes, signed or not."""
    return bytes(number & 0xFF for number in metadata.get("tokenizer.ggml.precompiled_charsmap", ()))


_READERS: Mapping[str, Callable[[Metadata], ImportedTokenizer]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
}
