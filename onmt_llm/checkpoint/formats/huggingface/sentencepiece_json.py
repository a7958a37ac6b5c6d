"""A SentencePiece model as tokenizer.json, with the ids of a model's vocabulary.

transformers makes a tokeniser from a tokenizer.model too, but as if all were LLaMA's: it takes no notice of
normalisation and of Unigram's scores, and a text that begins with a space loses it.

| SentencePiece | tokenizer.json |
|---|---|
| compiled normalisation, extra spaces removed, spaces as `▁` | `Precompiled`, `Replace` |
| dummy prefix, also before a space | two `Metaspace`: one adds a space, the next makes it `▁` |
| BPE: joins the two neighbours that form the piece with the highest score | `BPE`: all ways to form a piece, by score |
| Unigram: `<0x0A>` in a text is not the piece of that byte | `Split` after the `<` |
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.huggingface.tokenizer_json import (
    Json,
    added_tokens,
    frame,
    is_name,
    processor,
    refuse_lost,
    rows,
)
from onmt_llm.errors import UnsupportedError
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec
from onmt_llm.text.templates.message import Message
from onmt_llm.text.tokenizers.sentencepiece_proto import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceFacts,
    read_facts,
)

PROBES = (
    "The quick brown fox doesn't jump over 1,234.5 lazy dogs.",
    " one space before,  two within and two after  ",
    "def f(x):\n\n    return x\t# <0x0A>",
    "Ça été naïve, señor Müller; «Привет, мир» — العربية 你好，世界。",
    "ﬁve ½ Ａ e\u0301 😀👩‍👩‍👧 \u00a0\u200b\u3000.",
    "",
    " ",
)
"""Texts of which the two libraries must make the same tokens."""
_CHAT = [Message("user", "What is it?"), Message("assistant", "A test."), Message("user", " Why?\n")]
_ALL = 2**31 - 1


def from_sentencepiece(file: Path, codec: Codec) -> Json:
    """The tokenizer.json of a SentencePiece model.

    After control tokens a text gets the dummy prefix or not, as it does in the conversations of the model. A difference
    that remains is logged.

    Args:
        file: The SentencePiece model.
        codec: The text side of the model.

    Raises:
        UnsupportedError: It is neither a BPE nor a Unigram model, or the vocabulary lacks some of its pieces.
    """
    import tokenizers

    facts = read_facts(file.read_bytes())
    if facts.model_type not in (BPE, UNIGRAM) or not facts.escape_whitespaces:
        raise UnsupportedError(
            f"A SentencePiece model for transformers must be a BPE or a Unigram model that marks spaces, but {file} is "
            "not."
        )
    refuse_lost((piece for piece, kind in facts.pieces if kind == NORMAL), codec)
    content, tried = _content(facts, file, codec), []
    for scheme in ("first", "always") if facts.add_dummy_prefix else ("never",):
        content = {**content, "pre_tokenizer": _pre_tokenizer(facts, scheme)}
        tried.append((content, _differing(tokenizers.Tokenizer.from_str(json.dumps(content)), codec)))
    content, differing = min(tried, key=lambda one: len(one[1]))
    if differing:
        logger.warning("transformers does not split all texts as %s does, for example %r.", file.name, differing[0])
    return content


def _differing(tokenizer: Any, codec: Codec) -> list[str]:
    """The samples of which a tokeniser of `tokenizers` makes other tokens than the model's."""
    before, after = frame(codec) or ([], [])
    cases = [(text, [*before, *codec.src_tokenizer.encode(text), *after], True) for text in PROBES]
    if codec.template is not None:
        parts = codec.template.render(_CHAT, generation_prompt=True)
        text = "".join("".join(part.tokens or ()) if part.text is None else part.text for part in parts)
        cases.append((f"{codec.bos or ''}{text}", codec.encode_segments(parts), False))
    return [
        text
        for text, tokens, framed in cases
        if tokenizer.encode(text, add_special_tokens=framed).ids != codec.vocab.ids(tokens)
    ]


def _content(facts: SentencePieceFacts, file: Path, codec: Codec) -> Json:
    """All but the pre-tokeniser."""
    kinds, control = dict(facts.pieces), codec.tokenizer.control_tokens
    matched = {
        token: number
        for number, token in enumerate(codec.vocab)
        if token in control
        or (kinds.get(token, USER_DEFINED) in (USER_DEFINED, UNKNOWN, CONTROL) and not is_name(token, number))
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(matched, {*control, codec.config.specials.unk or ""}),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(facts)},
        "post_processor": processor(*(frame(codec) or ([], [])), codec),
        "decoder": _decoder(facts),
        "model": _model(facts, file, rows(codec), codec),
    }


def _model(facts: SentencePieceFacts, file: Path, tokens: Sequence[str], codec: Codec) -> Json:
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=str(file))
    scores = {
        piece: float(library.get_score(number)) for number, (piece, kind) in enumerate(facts.pieces) if kind == NORMAL
    }
    fallback = any(kind == BYTE for _, kind in facts.pieces)
    if facts.model_type == UNIGRAM:
        lowest = min(scores.values())
        vocab = [[token, scores.get(token, lowest)] for token in tokens]
        return {"type": "Unigram", "unk_id": codec.vocab.unk_id, "vocab": vocab, "byte_fallback": fallback}
    merges = [
        [piece[:at], piece[at:]]
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    return {
        "type": "BPE",
        "unk_token": codec.config.specials.unk,
        "fuse_unk": True,
        "byte_fallback": fallback,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": merges,
    }


def _normalizers(facts: SentencePieceFacts) -> list[Json]:
    steps: list[Json] = []
    if facts.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(facts.charsmap).decode()})
    if facts.remove_extra_whitespaces:
        steps += [_replace({"Regex": "^ +| +$"}, ""), _replace({"Regex": " {2,}"}, " ")]
    return [*steps, _replace({"String": " "}, "▁")]


def _replace(pattern: Json, content: str) -> Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _pre_tokenizer(facts: SentencePieceFacts, scheme: str) -> Json | None:
    """Adds the dummy prefix: "first" = at the start of a text, "always" = after control tokens too."""
    steps: list[Json] = [
        {"type": "Metaspace", "replacement": mark, "prepend_scheme": where, "split": False}
        for mark, where in ((" ", scheme), ("▁", "never"))
        if scheme != "never"
    ]
    if facts.model_type == UNIGRAM and any(kind == BYTE for _, kind in facts.pieces):
        within = {"Regex": "(?<=<)(?=0x[0-9A-F]{2}>)"}
        steps.append({"type": "Split", "pattern": within, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _decoder(facts: SentencePieceFacts) -> Json:
    steps = [_replace({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    stripped = _ALL if facts.remove_extra_whitespaces else int(facts.add_dummy_prefix)
    if stripped:
        steps.append({"type": "Strip", "content": " ", "start": stripped, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
