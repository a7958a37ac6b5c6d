"""The text side of a model as transformers reads it: tokeniser, special tokens and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.byte_level_bpe import QWEN2
from onmt_llm.checkpoint.formats.huggingface.sentencepiece_json import from_sentencepiece
from onmt_llm.checkpoint.formats.huggingface.tokenizer_json import adapted
from onmt_llm.checkpoint.formats.multilingual import piece_files, settings_of, tokenizer_class
from onmt_llm.checkpoint.formats.t5_tokenizer import T5_CLASSES, T5_FILE
from onmt_llm.checkpoint.formats.tokenizer_files import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, TEMPLATE_FILE, read_json
from onmt_llm.checkpoint.formats.words import words_in, words_of
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec

Files = dict[str, Path | str]


_CLASSES = {"qwen2": QWEN2}
"""Kinds of models for which transformers 5 takes its own class, whatever the files say, and how that splits text."""


def tokenizer_files(checkpoint: Checkpoint, codec: Codec, model_type: str) -> Files:
    """The tokeniser under the name that transformers expects, its special tokens and the chat template: files to copy,
    or contents.

    Args:
        checkpoint: The model.
        codec: Its text side.
        model_type: The kind of model as which it is written.

    Raises:
        UnsupportedError: transformers has no such tokeniser.
    """
    config = checkpoint.config
    if config.tokenizer.kind == "none":
        return {}
    name = T5_CLASSES[0] if config.tokenizer.file == T5_FILE else tokenizer_class(config)
    files = _own_json(checkpoint, codec, model_type) if name is None else _of_class(name, checkpoint, codec)
    files["tokenizer_config.json"] = _json({**_roles(config), **_settings(name, codec)})
    template = codec.template.jinja if codec.template else None
    if template is not None:
        files[TEMPLATE_FILE] = template
    elif config.template is not None:
        logger.warning("The chat template '%s' has no Jinja text and is not exported.", config.template)
    return files


def _own_json(checkpoint: Checkpoint, codec: Codec, model_type: str) -> Files:
    """A tokenizer.json, and the SentencePiece model that it is made from."""
    spec = checkpoint.config.tokenizer
    if spec.kind not in ("huggingface", "sentencepiece") or spec.file is None:
        raise UnsupportedError(
            f"transformers reads tokenisers of kind huggingface and sentencepiece, but this one is '{spec.kind}'."
        )
    # one vocabulary may have more rows without a token than the other
    if not codec.shares_tokenizer or any(
        ours != theirs for ours, theirs in zip(codec.vocab, codec.src_vocab, strict=False)
    ):
        raise UnsupportedError(
            "A tokeniser of transformers must be that of both sides, but this model has another one, or another "
            "vocabulary, for its source side."
        )
    file = checkpoint.path / spec.file
    is_pieces = spec.kind == "sentencepiece"
    own = None if is_pieces else read_json(file)
    content = from_sentencepiece(file, codec) if own is None else adapted(own, codec)
    if model_type in _CLASSES and words_in(content) != words_of(_CLASSES[model_type]):
        logger.warning(
            "AutoTokenizer splits text as Qwen2 does for all models of type %s, but this tokeniser does not: "
            "load it with PreTrainedTokenizerFast.from_pretrained.",
            model_type,
        )
    written = file if content is own else json.dumps(content, ensure_ascii=False)
    return {HUGGINGFACE_FILE: written, **({SENTENCEPIECE_FILE: file} if is_pieces else {})}


def _of_class(name: str, checkpoint: Checkpoint, codec: Codec) -> Files:
    """Files from which a class of transformers makes a tokeniser of its own."""
    spec = checkpoint.config.tokenizer
    assert spec.file is not None
    if name == T5_CLASSES[0]:
        return {spec.file: checkpoint.path / spec.file}
    if spec.kind == "sentencepiece":
        return piece_files(name, checkpoint.path, codec)
    return {HUGGINGFACE_FILE: checkpoint.path / spec.file}


def _roles(config: CheckpointConfig) -> dict[str, Any]:
    specials = config.specials
    roles = {"bos_token": specials.bos, "eos_token": specials.eos, "unk_token": specials.unk, "pad_token": specials.pad}
    return {
        **{role: token for role, token in roles.items() if token is not None},
        "clean_up_tokenization_spaces": False,
    }


def _settings(name: str | None, codec: Codec) -> dict[str, Any]:
    """What tokenizer_config.json says besides."""
    if name is None:
        adds_bos = codec.config.specials.add_bos
        return {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": adds_bos, "add_eos_token": False}
    if name == T5_CLASSES[0]:
        return {"tokenizer_class": name, "extra_ids": codec.config.tokenizer.options.get("extra_ids", 0)}
    return settings_of(name, codec)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
