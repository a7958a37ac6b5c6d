"""Read vocabulary, tokeniser, special tokens and chat template from Hugging Face and SentencePiece files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.byte_level_bpe import (
    MERGES_FILE,
    TEKKEN_FILE,
    VOCABULARY_FILE,
    from_tekken,
    from_tiktoken,
    from_vocab_and_merges,
    is_tiktoken,
    token_content,
)
from onmt_llm.checkpoint.formats.decoding_tokens import set_decoding
from onmt_llm.checkpoint.formats.imported import ImportedTokenizer
from onmt_llm.checkpoint.formats.multilingual import FAIRSEQ_FILE, SOURCE_FILE, class_of, from_pieces, set_languages
from onmt_llm.checkpoint.formats.t5_tokenizer import T5_FILE, from_t5, is_t5
from onmt_llm.checkpoint.formats.word_piece import WORD_PIECE_FILE, from_vocab_txt
from onmt_llm.config.checkpoint import SequenceTokens, SpecialTokens, TokenizerSpec
from onmt_llm.errors import CheckpointError, DataError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.text.templates.builtin import TEMPLATES, get_template
from onmt_llm.text.tokenizers.huggingface import HfTokenizer
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.vocab import Vocab, tokens_by_id, unused_token

SENTENCEPIECE_FILE = "tokenizer.model"
HUGGINGFACE_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
NO_TOKENIZER = Path("none")
"""Given instead of a tokeniser file: convert the weights alone."""
_FILES = (SOURCE_FILE, HUGGINGFACE_FILE, SENTENCEPIECE_FILE, FAIRSEQ_FILE, TEKKEN_FILE)
"""Tokenisers that are read, the first that a folder has; then vocab.json with merges.txt, and vocab.txt."""
_OTHER_FILES = ("spiece.model", "qwen.tiktoken", "tokenizer.model.v3")
"""Tokenisers of other kinds, which are not read."""

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML without a default system message, as most models define it."""
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
"""Tokens that end a turn in templates that contain them."""


def from_huggingface(
    model_dir: Path, *, rows: int, tokenizer_model: Path | None = None, vocab_file: Path | None = None
) -> ImportedTokenizer:
    """The tokeniser of a Hugging Face model directory.

    Args:
        model_dir: Holds tokenizer.json or tokenizer.model, and the JSON files that describe them.
        rows: Rows of the embedding; the vocabulary gets exactly this many tokens.
        tokenizer_model: Use this tokeniser file instead; `NO_TOKENIZER` = none.
        vocab_file: Use this vocabulary instead of the tokeniser's own.

    Raises:
        UnsupportedError: The tokeniser is one that no codec can open.
        DataError: The vocabulary file has more tokens than the model.
    """
    stated = {**_read_json(model_dir / "special_tokens_map.json"), **_read_json(model_dir / "tokenizer_config.json")}
    ids = {**_read_json(model_dir / "config.json"), **_read_json(model_dir / "generation_config.json")}
    t5 = is_t5(stated, ids)
    file = tokenizer_model or _find(model_dir, *[T5_FILE] * t5)
    name = class_of(file.parent, stated, ids)
    if file == NO_TOKENIZER:
        imported = without_tokenizer(rows)
    elif name is not None and file.suffix != ".json":
        imported = from_pieces(name, file, stated)
    elif (content := _tokenizer_json(file, stated, ids.get("model_type"))) is not None:
        imported = from_tokenizer_json(file, content, token_content(stated.get("bos_token")))
    elif t5:
        imported = from_t5(file, stated, rows)
    elif file.name in (FAIRSEQ_FILE, SOURCE_FILE):
        raise UnsupportedError(
            f"{file} must belong to an NLLB, M2M100, mBART or Marian model, whose ids are known, but model_type in "
            f"config.json is '{ids.get('model_type')}'."
        )
    else:
        imported = from_sentencepiece(file, rows=rows, add_bos=bool(stated.get("add_bos_token", True)))
        for token, number in _read_json(model_dir / "added_tokens.json").items():
            if isinstance(number, int) and 0 <= number < rows:
                imported.tokens[number] = token
    tokens = Vocab.read(vocab_file, imported.specials) if vocab_file else None
    imported.tokens = fit([tokens[i] for i in range(len(tokens))] if tokens else imported.tokens, rows)
    imported.specials, imported.stop_tokens = _specials(imported, stated, ids)
    if ids.get("is_encoder_decoder", t5):
        if name is not None:
            set_languages(imported, name, stated)
        set_decoding(imported, ids)
    else:
        imported.sequences = SequenceTokens()
    if file != NO_TOKENIZER:
        set_template(imported, _template_text(model_dir, stated))
    return imported


def without_tokenizer(rows: int) -> ImportedTokenizer:
    """The text side of weights alone: a name for each row of the embedding, and nothing that reads text."""
    logger.warning("The model is converted without a tokeniser: it can be exported and released, but reads no text.")
    specials = SpecialTokens(unk=None, bos=None, eos=None, add_bos=False)
    return ImportedTokenizer(tokens=fit([], rows), specials=specials, spec=TokenizerSpec(kind="none"))


def from_sentencepiece(file: Path, *, rows: int, add_bos: bool = True) -> ImportedTokenizer:
    """The tokeniser of a SentencePiece model: its pieces and control tokens, without a template.

    Raises:
        DataError: The file is not a SentencePiece model.
        UnsupportedError: No codec can open it.
    """
    import sentencepiece

    if not file.is_file():
        raise DataError(f"There is no tokeniser model at {file}.")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} must be a SentencePiece model, but cannot be read as one.") from error
    SentencePieceTokenizer(file)

    def piece(number: int) -> str | None:
        return pieces[number] if number >= 0 else None

    return ImportedTokenizer(
        tokens=fit(pieces, rows),
        specials=SpecialTokens(
            unk=piece(model.unk_id()),
            bos=piece(model.bos_id()),
            eos=piece(model.eos_id()),
            pad=piece(model.pad_id()),
            add_bos=add_bos,
        ),
        spec=TokenizerSpec(kind="sentencepiece", file=SENTENCEPIECE_FILE),
        files={SENTENCEPIECE_FILE: file},
    )


def fit(tokens: Sequence[str], rows: int) -> list[str]:
    """Exactly `rows` tokens: rows without a token get a name; tokens without a row are dropped with a warning."""
    if len(tokens) > rows:
        extra = ", ".join(tokens[rows : rows + 5])
        logger.warning(
            "%d tokens of the tokeniser have no row in the embedding and are dropped: %s ...",
            len(tokens) - rows,
            extra,
        )
    return list(tokens[:rows]) + [unused_token(i) for i in range(len(tokens), rows)]


def set_template(imported: ImportedTokenizer, text: str | None) -> None:
    """Store a chat template (by name if it is built in, otherwise as a file) and the tokens that end its turns."""
    if not text:
        return
    known = set(imported.tokens)
    built_in = _built_in(text, imported.specials)
    if built_in is not None and get_template(built_in, specials=imported.specials).control_tokens <= known:
        imported.template = built_in
    else:
        imported.template = TEMPLATE_FILE
        imported.blobs[TEMPLATE_FILE] = text.encode("utf-8")
    ends = [token for token in TURN_ENDS if token in text and token in known]
    imported.stop_tokens = [
        *imported.stop_tokens,
        *(t for t in ends if t != imported.specials.eos and t not in imported.stop_tokens),
    ]


def _built_in(text: str, specials: SpecialTokens) -> str | None:
    """The name of the built-in template that a Jinja text equals."""
    if _same_template(text, CHATML):
        return "chatml"
    sources = {name: get_template(name, specials=specials).jinja for name in TEMPLATES}
    return next((name for name, source in sources.items() if source and _same_template(text, source)), None)


def _same_template(one: str, other: str) -> bool:
    """Whether they are equal, however line breaks in strings are escaped."""
    return one.strip().replace("\\n", "\n") == other.strip().replace("\\n", "\n")


def _find(model_dir: Path, *own: str) -> Path:
    """The tokeniser file of a directory, which may be one of the model's `own` kind; `NO_TOKENIZER` if there is none of
    any kind."""
    has_merges = (model_dir / MERGES_FILE).is_file()
    known = (*_FILES, *own, *_OTHER_FILES, *[VOCABULARY_FILE] * has_merges, WORD_PIECE_FILE, VOCABULARY_FILE)
    here = next((name for name in known if (model_dir / name).is_file()), None)
    if here in {*_OTHER_FILES}.difference(own) or (here == VOCABULARY_FILE and not has_merges):
        raise UnsupportedError(
            f"The tokeniser in {model_dir} must be {', '.join(_FILES)}, {VOCABULARY_FILE} with {MERGES_FILE}, or "
            f"{WORD_PIECE_FILE}, but is {here}.",
            hint=f"give a {HUGGINGFACE_FILE} with -tokenizer_model; -tokenizer_model none converts the weights alone",
        )
    return model_dir / here if here else NO_TOKENIZER


def _tokenizer_json(file: Path, stated: Mapping[str, Any], model_type: str | None) -> bytes | None:
    """The tokenizer.json that a tokeniser file is or becomes; None = it is another kind of file."""
    if file.name == WORD_PIECE_FILE:
        return from_vocab_txt(file, stated)
    if file.suffix != ".json":
        return from_tiktoken(file) if file.is_file() and is_tiktoken(file) else None
    if file.is_file() and "model" not in (content := _read_json(file)):
        if {"config", "vocab"} <= content.keys():
            return from_tekken(file)
        if file.with_name(MERGES_FILE).is_file():
            return from_vocab_and_merges(file, stated, model_type=model_type)
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} must be a {HUGGINGFACE_FILE}, but cannot be read ({error}).") from error


def from_tokenizer_json(file: Path, content: bytes, bos: str | None) -> ImportedTokenizer:
    """The tokeniser of a tokenizer.json that a codec can open. Encoding a text shows which tokens it adds.

    Args:
        file: Where it comes from.
        content: The tokenizer.json.
        bos: The token that begins a text; None = the one that the tokeniser puts there.
    """
    import tokenizers

    HfTokenizer(file, content)
    tokenizer = tokenizers.Tokenizer.from_buffer(content)
    prefix, suffix = tokens_around(tokenizer)
    unk = getattr(tokenizer.model, "unk_token", None)
    bos = bos or next(iter(prefix), None)
    return ImportedTokenizer(
        tokens=tokens_by_id(tokenizer.get_vocab(with_added_tokens=True)),
        specials=SpecialTokens(unk=unk, bos=bos, eos=None, add_bos=bos is not None and prefix[:1] == [bos]),
        spec=TokenizerSpec(kind="huggingface", file=HUGGINGFACE_FILE),
        sequences=SequenceTokens(src_prefix=prefix, src_suffix=suffix),
        blobs={HUGGINGFACE_FILE: content},
    )


def tokens_around(tokenizer: Any) -> tuple[list[str], list[str]]:
    """The tokens that a tokeniser of `tokenizers` adds before and after those of a text."""
    whole, text = tokenizer.encode("a").tokens, tokenizer.encode("a", add_special_tokens=False).tokens
    places = range(len(whole) - len(text) + 1)
    at = next((place for place in places if whole[place : place + len(text)] == text), 0)
    return whole[:at], whole[at + len(text) :]


def _specials(
    imported: ImportedTokenizer, stated: Mapping[str, Any], ids: Mapping[str, Any]
) -> tuple[SpecialTokens, list[str]]:
    """Special tokens that the files define, by name or else by id; and further tokens that end an answer."""
    known, rows = set(imported.tokens), len(imported.tokens)

    def by_name(role: str) -> str | None:
        token = token_content(stated.get(f"{role}_token"))
        return token if token in known else None

    def by_id(role: str) -> list[str]:
        value = ids.get(f"{role}_token_id")
        numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]
        wrong = [n for n in numbers if not 0 <= n < rows]
        if wrong and role in ("bos", "eos"):  # -1 is a common way to say that there is no padding token
            raise CheckpointError(
                f"{role}_token_id must be the id of one of the model's {rows:,} tokens, but is {wrong[0]}.",
                hint="correct it in config.json or generation_config.json",
            )
        return [imported.tokens[n] for n in numbers if n not in wrong]

    def token(role: str, own: str | None) -> str | None:
        return by_name(role) or next(iter(by_id(role)), None) or (own if own in known else None)

    own = imported.specials
    bos, eos = token("bos", own.bos), token("eos", own.eos)
    specials = SpecialTokens(
        unk=token("unk", own.unk), bos=bos, eos=eos, pad=token("pad", own.pad), add_bos=own.add_bos and bos is not None
    )
    return specials, [stop for stop in by_id("eos") if stop != eos]


def _template_text(model_dir: Path, stated: Mapping[str, Any]) -> str | None:
    file = model_dir / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = stated.get("chat_template")
    if isinstance(template, list):  # several named templates: "default" is the one for chat
        template = next(
            (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must be a JSON object, but is a {type(content).__name__}.")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; the file must exist."""
    if not file.is_file():
        raise CheckpointError(f"The file {file} is missing.")
    return _read_json(file)
