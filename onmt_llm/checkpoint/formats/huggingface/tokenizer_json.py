"""A model's tokeniser as tokenizer.json, which transformers and other programs use as it is.

In it the ids are those of the model's vocabulary, control tokens are matched in text, and a text gets the tokens that
the model was trained with: bos, or what precedes and follows the sources of an encoder-decoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onmt_llm.checkpoint.formats.tokenizer_files import tokens_around
from onmt_llm.errors import UnsupportedError
from onmt_llm.text.codec import Codec
from onmt_llm.text.languages import PLACES
from onmt_llm.text.new_vocab import PADDING
from onmt_llm.text.vocab import unused_token

Json = dict[str, Any]


def adapted(content: Json, codec: Codec) -> Json:
    """A tokenizer.json with the ids, control tokens and surrounding tokens of a model; the same if it has them already.

    Raises:
        UnsupportedError: The vocabulary lacks some of its pieces, which other programs would give all the same.
    """
    import tokenizers

    content, around = _numbered(content, codec), frame(codec)
    if around is None or tokens_around(tokenizers.Tokenizer.from_str(json.dumps(content))) == around:
        return content
    return {**content, "post_processor": _processor(content, *around, codec)}


def rows(codec: Codec) -> list[str]:
    """A token for each row of the embedding."""
    tokens = list(codec.vocab)
    return tokens + [unused_token(row) for row in range(len(tokens), codec.config.model.vocab_size)]


def refuse_lost(pieces: Iterable[str], codec: Codec) -> None:
    """Refuse a vocabulary that lacks pieces of the tokeniser.

    Raises:
        UnsupportedError: It does.
    """
    lost = [piece for piece in pieces if piece not in codec.vocab]
    if lost:
        raise UnsupportedError(
            f"All pieces of the tokeniser must be in the vocabulary of a model for transformers, which has no unknown "
            f"pieces, but {len(lost):,} are not: {', '.join(map(repr, lost[:5]))}.",
            hint="train with the tokeniser's own vocabulary: leave src_vocab out",
        )


def refuse_other_ids(pieces: Sequence[str], codec: Codec) -> None:
    """Refuse a vocabulary in which the pieces of a tokeniser have other ids than in its file.

    Raises:
        UnsupportedError: It has one.
    """
    vocab = list(codec.vocab)
    other = next((piece for number, piece in enumerate(pieces) if vocab[number : number + 1] != [piece]), None)
    if other is not None:
        raise UnsupportedError(
            f"The ids of the vocabulary must be those of the tokeniser's file, but that of {other!r} is another."
        )


def added_tokens(tokens: Mapping[str, int], control: Iterable[str]) -> list[Json]:
    """Entries of tokens that are matched in text before it is split: control tokens, and others."""
    special = set(control)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": number, "content": token, **plain, "special": token in special} for token, number in tokens.items()]


def frame(codec: Codec) -> tuple[list[str], list[str]] | None:
    """The tokens before and after those of a text; None = they depend on a language that the text does not say."""
    before_and_after = codec.sequences.src_prefix, codec.sequences.src_suffix
    if codec.task == "seq2seq" and any(place in side for side in before_and_after for place in PLACES):
        return None
    return codec.source_frame


def processor(before: Sequence[str], after: Sequence[str], codec: Codec) -> Json | None:
    """The post-processor that puts a text between tokens."""
    if not before and not after:
        return None

    def special(token: str) -> Json:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    around = [[*map(special, before), {"Sequence": {"id": text, "type_id": 0}}, *map(special, after)] for text in "AB"]
    ids = {token: {"id": token, "ids": [codec.vocab.id(token)], "tokens": [token]} for token in (*before, *after)}
    return {"type": "TemplateProcessing", "single": around[0], "pair": [*around[0], *around[1]], "special_tokens": ids}


def _processor(content: Json, before: Sequence[str], after: Sequence[str], codec: Codec) -> Json | None:
    """That of these tokens, after the step that takes spaces off the offsets of tokens, if there is one."""
    own = content.get("post_processor") or {}
    kept = [step for step in own.get("processors", [own]) if step.get("type") == "ByteLevel"]
    steps = [*kept, *filter(None, [processor(before, after, codec)])]
    return {"type": "Sequence", "processors": steps} if len(steps) > 1 else next(iter(steps), None)


def _numbered(content: Json, codec: Codec) -> Json:
    """With the ids of the model's vocabulary, and with its control tokens."""
    model, added = content["model"], content.get("added_tokens") or []
    table = model["vocab"]
    pieces = dict(table) if isinstance(table, dict) else {entry[0]: number for number, entry in enumerate(table)}
    known = {**pieces, **{token["content"]: token["id"] for token in added}}
    tokens = rows(codec)
    refuse_lost(pieces, codec)
    new = {token: number for number, token in enumerate(tokens) if token not in known and not is_name(token, number)}
    moved = any(codec.vocab.id(token) != number for token, number in known.items() if token in codec.vocab)
    if moved or list(new.values()) != list(range(len(known), len(known) + len(new))):
        model = {**model, "vocab": _table(table, tokens)}
        added = [
            {**token, "id": codec.vocab.id(token["content"])} for token in added if token["content"] in codec.vocab
        ]
    if not moved and not new:
        return content
    added = [*added, *added_tokens(new, codec.tokenizer.control_tokens)]
    return {**content, "model": model, "added_tokens": sorted(added, key=lambda token: token["id"])}


def _table(table: Any, tokens: Sequence[str]) -> Any:
    """The vocabulary of a model with other ids."""
    if isinstance(table, dict):
        return {token: number for number, token in enumerate(tokens)}
    scores = {token: score for token, score in table}
    return [[token, scores.get(token, min(scores.values()))] for token in tokens]


def is_name(token: str, number: int) -> bool:
    """Whether a token only names a row of the embedding that has none."""
    return token == unused_token(number) or token.startswith(PADDING)
