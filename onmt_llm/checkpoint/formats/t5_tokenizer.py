"""The text side of T5 and its relatives: SentencePiece, sentinels after its pieces, and eos after each source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.imported import ImportedTokenizer
from onmt_llm.config.checkpoint import SequenceTokens, SpecialTokens, TokenizerSpec
from onmt_llm.errors import CheckpointError
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer

T5_FILE = "spiece.model"
T5_CLASSES = ("T5Tokenizer", "MT5Tokenizer")
_T5_MODELS = ("t5", "mt5", "umt5")
EXTRA_IDS = 100
"""Number of sentinels where tokenizer_config.json does not say it; none, if the embedding has no rows for them."""
_EOS = "</s>"


def is_t5(stated: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece model is T5's: by the class of the tokeniser, or else by the kind of model.

    Args:
        stated: tokenizer_config.json.
        config: config.json.
    """
    name = stated.get("tokenizer_class") or config.get("tokenizer_class")
    return str(name).removesuffix("Fast") in T5_CLASSES if name else config.get("model_type") in _T5_MODELS


def from_t5(file: Path, stated: Mapping[str, Any], rows: int) -> ImportedTokenizer:
    """The tokeniser of a spiece.model.

    Args:
        file: The model.
        stated: tokenizer_config.json, with the number of sentinels.
        rows: Rows of the embedding.

    Raises:
        CheckpointError: The sentinels are not a number, or have no rows in the embedding.
        DataError: The file is not a SentencePiece model.
    """
    pieces = SentencePieceTokenizer(file).vocab_tokens()
    if _EOS not in pieces:
        raise CheckpointError(f"The pieces of a T5 must hold {_EOS}, which ends its texts, but those of {file} do not.")
    free = max(rows - len(pieces), 0)
    extra_ids = stated.get("extra_ids", EXTRA_IDS if free >= EXTRA_IDS else 0)
    if not isinstance(extra_ids, int) or not 0 <= extra_ids <= free:
        raise CheckpointError(
            f"extra_ids in tokenizer_config.json must be a number of at most {free}, since the embedding has so many "
            f"rows beyond the {len(pieces)} pieces of {file}, but is {extra_ids}."
        )
    spec = TokenizerSpec(kind="sentencepiece", file=T5_FILE, options={"extra_ids": extra_ids} if extra_ids else {})
    tokenizer = SentencePieceTokenizer(file, **spec.options)
    return ImportedTokenizer(
        tokens=tokenizer.vocab_tokens(),
        specials=SpecialTokens(unk="<unk>", bos=None, eos=_EOS, pad="<pad>", add_bos=False),
        spec=spec,
        sequences=SequenceTokens(src_suffix=[_EOS]),
        files={T5_FILE: file},
    )
