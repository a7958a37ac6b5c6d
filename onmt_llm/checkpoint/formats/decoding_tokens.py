"""How an encoder-decoder of Hugging Face decodes: the token ids in its config.json and generation_config.json.

`set_decoding` reads them, `decoding_ids` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onmt_llm.checkpoint.formats.imported import ImportedTokenizer
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec
from onmt_llm.text.languages import PLACES, SRC_LANG, TGT_LANG

_STARTS = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
"""The key of the start token, and what stands for it where it is not set."""
_FORCED = "forced_bos_token_id"


def set_decoding(imported: ImportedTokenizer, ids: Mapping[str, Any]) -> None:
    """Store the tokens that the decoder is given (the start token, a forced first token), and those never generated.

    Raises:
        CheckpointError: An id is not one of the vocabulary, or no token starts a target.
    """
    languages, source = imported.languages, imported.sequences
    names_language = SRC_LANG in (*source.src_prefix, *source.src_suffix)
    start = next((key for key in _STARTS if ids.get(key) is not None), None)
    if names_language and start != _STARTS[0]:
        start = None  # the decoder begins with the language (mBART)
    elif start is None:
        raise CheckpointError(f"config.json must have `{_STARTS[0]}`, but does not.")
    keys = [key for key in (start, _FORCED) if key is not None and ids.get(key) is not None]
    codes = {token: code for code, token in languages.tokens.items()}
    tokens = [_token(imported, key, ids[key]) for key in keys]
    begin = [TGT_LANG if token in codes else token for token in tokens]
    if names_language and TGT_LANG not in begin:
        begin.append(TGT_LANG)
    imported.sequences = source.model_copy(update={"decoder_start": begin})
    if default := next((codes[token] for token in tokens if token in codes), None):
        imported.languages = languages.model_copy(update={"tgt": default})
    words = ids.get("bad_words_ids") or []
    if any(len(word) > 1 for word in words):
        logger.warning("The sequences of several tokens in bad_words_ids are left out: the model may generate them.")
    banned = [_token(imported, "bad_words_ids", word[0]) for word in words if len(word) == 1]
    banned += [_token(imported, "suppress_tokens", number) for number in ids.get("suppress_tokens") or []]
    imported.banned_tokens = list(dict.fromkeys(banned))


def decoding_ids(codec: Codec) -> dict[str, Any]:
    """The keys that `set_decoding` reads, as far as they do not depend on a language without a default.

    Raises:
        UnsupportedError: The decoder is given more tokens than there are keys.
    """
    start = codec.sequences.decoder_start or codec.start_tokens
    keys = (_STARTS[0], _FORCED)
    if len(start) > len(keys):
        raise UnsupportedError(
            f"A Hugging Face model must begin to decode with at most {len(keys)} tokens, but this one begins with "
            f"{' '.join(start)}."
        )
    ids: dict[str, Any] = {
        key: codec.vocab.id(token) for key, token in zip(keys, start, strict=False) if token not in PLACES
    }
    banned = codec.vocab.ids(codec.config.banned_tokens)
    return {**ids, "bad_words_ids": [[number] for number in banned]} if banned else ids


def _token(imported: ImportedTokenizer, key: str, number: object) -> str:
    rows = len(imported.tokens)
    if not isinstance(number, int) or not 0 <= number < rows:
        raise CheckpointError(
            f"{key} must be the id of one of the model's {rows:,} tokens, but is {number}.",
            hint="correct it in config.json or generation_config.json",
        )
    return imported.tokens[number]
