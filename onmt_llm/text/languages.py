"""The tokens of a model's sequences: those of a pair of languages, and the one that targets start with."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from onmt_llm.config.checkpoint import CheckpointConfig, LanguageTokens, SequenceTokens
from onmt_llm.errors import ConfigError
from onmt_llm.log import log_once, logger
from onmt_llm.text.vocab import Vocab

PLACES = SRC_LANG, TGT_LANG = "{src_lang}", "{tgt_lang}"
"""Where the tokens of the languages go."""


def fill(sequences: SequenceTokens, languages: LanguageTokens, *, src: str = "", tgt: str = "") -> SequenceTokens:
    """The sequences with the tokens of these languages, as far as they are known.

    Args:
        sequences: With `{src_lang}` and `{tgt_lang}`.
        languages: The model's.
        src: Code of the source language, or its token; "" = the model's default.
        tgt: Code of the target language, or its token; "" = the model's default.

    Raises:
        ConfigError: The model has no such language.
    """
    codes = {SRC_LANG: src or languages.src, TGT_LANG: tgt or languages.tgt}
    tokens = {
        place: language_token(place.strip("{}"), code, languages)
        for place, code in codes.items()
        if code and place in places(sequences)
    }
    filled = {name: [tokens.get(token, token) for token in value] for name, value in sequences}
    return SequenceTokens.model_validate(filled)


def log_defaults(sequences: SequenceTokens, languages: LanguageTokens, *, src: str, tgt: str) -> None:
    """Log once which languages are the model's own, since others are not requested."""
    for place, code, default in ((SRC_LANG, src, languages.src), (TGT_LANG, tgt, languages.tgt)):
        if place in places(sequences) and default and not code:
            log_once(f"{place.strip('{}')} is '{default}', the model's own, since no other is given.")


def places(sequences: SequenceTokens) -> list[str]:
    """Those of `{src_lang}` and `{tgt_lang}` that occur in the sequences."""
    used = {token for _, tokens in sequences for token in tokens}
    return [place for place in PLACES if place in used]


def check_filled(tokens: Sequence[str], languages: LanguageTokens) -> list[str]:
    """`tokens`, if the languages in them are known.

    Raises:
        ConfigError: A language has to be given.
    """
    missing = [place.strip("{}") for place in PLACES if place in tokens]
    if missing:
        few = ", ".join(list(languages.tokens)[:5])
        raise ConfigError(
            f"{missing[0]} must be given for this model of {len(languages.tokens)} languages, but is not.",
            hint=f"-{missing[0]} CODE, such as {few}",
        )
    return list(tokens)


def language_token(option: str, code: str, languages: LanguageTokens) -> str:
    """The token of a language, by its code or by the token itself.

    Raises:
        ConfigError: The model has no such language; the hint names similar codes.
    """
    if code in languages.tokens:
        return languages.tokens[code]
    if code in languages.tokens.values():
        return code
    known = list(languages.tokens)
    near = get_close_matches(code, known, n=5, cutoff=0.5) or [each for each in known if each[:2] == code[:2]]
    raise ConfigError(
        f"{option} must be one of the {len(known)} languages of the model, but is '{code}'.",
        hint=(f"similar ones are {', '.join(near)}" if near else f"the first ones are {', '.join(known[:10])}")
        + "; a new language is trained under the code of one that is not needed",
    )


def no_start() -> ConfigError:
    """The error for an encoder-decoder whose targets would have no start token."""
    return ConfigError("decoder_start_token must be a token for an encoder-decoder, but is empty.")


def with_start(stored: CheckpointConfig, start: str | None, vocab: Vocab) -> CheckpointConfig:
    """The configuration with another token that every target starts with; None = its own, "" = none.

    Raises:
        ConfigError: The vocabulary lacks the token, targets start with their language, or those of an encoder-decoder
            would have no start token.
    """
    is_lm, specials = stored.model.is_decoder_only, stored.specials
    begin = [] if is_lm else stored.sequences.decoder_start
    own = begin[0] if begin else specials.bos if specials.add_bos or not is_lm else None
    if start is None or start == (own or ""):
        return stored
    if start == "":
        if not is_lm:
            raise no_start()
        logger.info("decoder_start_token: texts start with no token instead of the checkpoint's '%s'.", own)
        return stored.model_copy(update={"specials": specials.model_copy(update={"add_bos": False})})
    if start not in vocab:
        raise ConfigError(f"decoder_start_token must be in the checkpoint's vocabulary, but '{start}' is not.")
    if own in PLACES:
        raise ConfigError(
            f"decoder_start_token must not be given for a model whose targets start with their language, but is "
            f"'{start}'.",
            hint="tgt_lang chooses the language",
        )
    logger.info("decoder_start_token: '%s' instead of the checkpoint's '%s'.", start, own)
    if not begin:
        update = {"bos": start, "add_bos": is_lm or specials.add_bos}
        return stored.model_copy(update={"specials": specials.model_copy(update=update)})
    sequences = stored.sequences.model_copy(update={"decoder_start": [start, *begin[1:]]})
    return stored.model_copy(update={"sequences": sequences})
