"""Rebuild the tokeniser stored in a GGUF file as a file that its library reads.

`gpt2` kind: byte-level BPE -> tokenizer.json. `llama` kind: SentencePiece BPE -> tokenizer.model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onmt_llm.checkpoint.formats.byte_level_bpe import byte_level_bpe
from onmt_llm.checkpoint.formats.gguf.splitting import begins_with_bos, splitting
from onmt_llm.checkpoint.formats.imported import ImportedTokenizer
from onmt_llm.checkpoint.formats.tokenizer_files import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, fit, set_template
from onmt_llm.config.checkpoint import SpecialTokens, TokenizerSpec
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.optional import require

Metadata = Mapping[str, Any]

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""`tokenizer.ggml.token_type`; the numbers are SentencePiece's."""


_OTHER_KINDS = {"t5": "SentencePiece Unigram", "bert": "WordPiece", "rwkv": "RWKV's", "none": "no tokeniser"}
"""Kinds that are not read."""


def read_tokenizer(metadata: Metadata, *, rows: int) -> ImportedTokenizer:
    """Vocabulary, tokeniser, special tokens and template of a GGUF file.

    Raises:
        CheckpointError: A required key is missing.
        UnsupportedError: The kind of tokeniser is not supported.
    """
    kind = _value(metadata, "model")
    tokens = fit(_value(metadata, "tokens"), rows)
    if kind == "gpt2":
        tokenizer, file, content = "huggingface", HUGGINGFACE_FILE, _byte_level_bpe(metadata)
    elif kind == "llama":
        tokenizer, file, content = "sentencepiece", SENTENCEPIECE_FILE, _sentencepiece(metadata)
    else:
        raise UnsupportedError(
            f"The tokeniser of a GGUF file must be of kind gpt2 (byte-level BPE) or llama (SentencePiece BPE), but is "
            f"'{kind}'{f' ({_OTHER_KINDS[kind]})' if kind in _OTHER_KINDS else ''}.",
            hint="convert the model's Hugging Face files instead (-source hf)",
        )
    imported = ImportedTokenizer(
        tokens=tokens,
        specials=_specials(metadata, tokens),
        spec=TokenizerSpec.model_validate({"kind": tokenizer, "file": file}),
        blobs={file: content},
    )
    imported.stop_tokens = _other_stop_tokens(metadata, tokens)
    set_template(imported, metadata.get("tokenizer.chat_template"))
    return imported


def _value(metadata: Metadata, key: str) -> Any:
    try:
        return metadata[f"tokenizer.ggml.{key}"]
    except KeyError as error:
        raise CheckpointError(f"The GGUF file must have the key tokenizer.ggml.{key}, but does not.") from error


def _token(metadata: Metadata, tokens: list[str], role: str) -> str | None:
    number = metadata.get(f"tokenizer.ggml.{role}_token_id")
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None


def _specials(metadata: Metadata, tokens: list[str]) -> SpecialTokens:
    bos = _token(metadata, tokens, "bos")
    # llama.cpp's defaults if the key is missing: SentencePiece models, and LLaMA 3's and Mistral's tokenisers add bos.
    adds_bos = metadata["tokenizer.ggml.model"] == "llama" or begins_with_bos(_pre(metadata))
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos))
    return SpecialTokens(
        unk=_token(metadata, tokens, "unknown"),
        bos=bos,
        eos=_token(metadata, tokens, "eos"),
        pad=_token(metadata, tokens, "padding"),
        add_bos=add_bos and bos is not None,
    )


def _other_stop_tokens(metadata: Metadata, tokens: list[str]) -> list[str]:
    """End-of-turn and end-of-message tokens, if the file has them besides eos."""
    ends = (_token(metadata, tokens, role) for role in ("eot", "eom"))
    return [end for end in ends if end is not None and end != _token(metadata, tokens, "eos")]


def _pre(metadata: Metadata) -> str:
    return str(metadata.get("tokenizer.ggml.pre", "default"))


def _byte_level_bpe(metadata: Metadata) -> bytes:
    """tokenizer.json of a byte-level BPE."""
    tokens, types = _value(metadata, "tokens"), _types(metadata)
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in _value(metadata, "merges"))]
    added = {
        token: kind == CONTROL for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)
    }
    return byte_level_bpe(tokens, merges, splitting(_pre(metadata)), added)


def _types(metadata: Metadata) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    return list(types) if types is not None else [NORMAL] * len(_value(metadata, "tokens"))


def _sentencepiece(metadata: Metadata) -> bytes:
    """tokenizer.model of a SentencePiece BPE with byte fallback: llama.cpp's kind `llama`."""
    schema = require("sentencepiece.sentencepiece_model_pb2", "a GGUF file with a SentencePiece tokeniser", "protobuf")
    model = schema.ModelProto()
    tokens, types, scores = _value(metadata, "tokens"), _types(metadata), _value(metadata, "scores")
    for token, kind, score in zip(tokens, types, scores, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    trainer = model.trainer_spec
    trainer.model_type = schema.TrainerSpec.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = "<0x0A>" in tokens
    for role, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        setattr(trainer, f"{role}_id", -1 if number is None else int(number))
        if number is not None:
            setattr(trainer, f"{role}_piece", tokens[int(number)])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return bytes(model.SerializeToString())
