"""Vocabularies for OpenNMT-py's checkpoints, where special tokens have fixed names."""

from __future__ import annotations

import re
from typing import Any

from onmt_llm.checkpoint.formats.tokenizer_files import fit
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec

UNK, BLANK, BOS, EOS = "<unk>", "<blank>", "<s>", "</s>"
_UNUSED = re.compile(r"<0x00>|<\|unused_\d+\|>|averyunlikelytoken\d+|<(?:unused|extra_id|reserved_special_token)_?\d+>")
"""Tokens that never occur in text, so one can serve as padding. (OpenNMT-py's own converters use `<0x00>`.)"""


def opennmt_vocab(checkpoint: Checkpoint) -> dict[str, Any]:
    """The `vocab` entry of the file: lists of tokens, the task, and the token that every target starts with.

    Raises:
        UnsupportedError: No token can serve as padding.
    """
    config, codec = checkpoint.config, checkpoint.codec()
    model = config.model
    target = fit(list(codec.vocab), model.vocab_size)
    source = target if model.is_decoder_only else fit(list(codec.src_vocab), model.encoder_vocab_size)
    start = start_token(codec)
    new_names = opennmt_names(target, config.specials, start)
    vocab: dict[str, Any] = {
        "src": rename(source, opennmt_names(source, config.specials, start)),
        "tgt": rename(target, new_names),
        "data_task": "lm" if model.is_decoder_only else "seq2seq",
        "decoder_start_token": "" if start is None else new_names.get(start, start),
    }
    if model.src_features:
        vocab["src_feats"] = [
            fit(list(tokens), feature.vocab_size)
            for tokens, feature in zip(codec.feature_vocabs, model.src_features, strict=True)
        ]
    return vocab


def start_token(codec: Codec) -> str | None:
    """The token that every target starts with, or the place of a language; None = there is none."""
    begin = codec.sequences.decoder_start if codec.task == "seq2seq" else []
    return begin[0] if begin else codec.bos


def opennmt_names(tokens: list[str], specials: SpecialTokens, start: str | None = None) -> dict[str, str]:
    """OpenNMT-py's names for our special tokens and for a padding token.

    A token with two roles gets the name of the first: end, unknown, start, padding. Padding is masked in attention, so
    it must be a token that never occurs in text, and none that targets start with.
    """
    known = set(tokens)
    names: dict[str, str] = {}
    bos, pad = (start, None) if start is not None and specials.pad == start else (specials.bos, specials.pad)
    for token, name in ((specials.eos, EOS), (specials.unk, UNK), (bos, BOS), (pad, BLANK)):
        if token in known:
            names.setdefault(str(token), name)
    if BLANK not in names.values():
        candidates = [BLANK] if BLANK in known else [token for token in tokens if _UNUSED.fullmatch(token)]
        blank = next((token for token in candidates if token not in names), None)
        if blank is None:
            raise UnsupportedError(
                "OpenNMT-py needs a padding token, but every token of the vocabulary can occur in a text or its frame.",
                hint="set `pad` in the `specials` of config.yaml",
            )
        names[blank] = BLANK
    return names


def rename(tokens: list[str], names: dict[str, str]) -> list[str]:
    """The tokens under new names. A token that already had such a name gets the old name of its successor."""
    renamed = dict(names)
    for old, new in names.items():
        if old != new and new in tokens and new not in names:
            renamed[new] = old
    changed = {old: new for old, new in renamed.items() if old != new}
    if changed:
        logger.info("Tokens renamed for OpenNMT-py: %s.", ", ".join(f"{old} -> {new}" for old, new in changed.items()))
    return [renamed.get(token, token) for token in tokens]
