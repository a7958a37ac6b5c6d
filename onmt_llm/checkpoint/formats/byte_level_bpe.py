"""Byte-level BPE tokenisers in other files than tokenizer.json, and the tokenizer.json that each becomes.

The files are vocab.json with merges.txt (GPT-2, BART, Qwen2), tiktoken's lines of a token and its rank (Llama 3 as
Meta publishes it) and tekken.json (Mistral).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.text.decoding import byte_alphabet

VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
TEKKEN_FILE = "tekken.json"

Merge = tuple[str, str]

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Splitting:
    """How a text is split into words, within which pieces are merged.

    Attributes:
        patterns: Regular expressions, one applied after the other; none = GPT-2's, which is built into the library.
        digits: Each digit is a word.
        prefix_space: A text begins with a space.
        nfc: The text is normalised to NFC.
        whole_words: A word that is in the vocabulary is one piece, whatever the merges.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    prefix_space: bool = False
    nfc: bool = False
    whole_words: bool = False


GPT2 = Splitting()
DIGITS_APART = Splitting(digits=True)
LLAMA3 = Splitting((rf"{_WORDS}|\p{{N}}{{1,3}}|{_OTHERS}",), whole_words=True)
QWEN2 = Splitting((rf"{_WORDS}|\p{{N}}|{_OTHERS}",), nfc=True)

_KINDS = {**dict.fromkeys(("GPT2", "CodeGen", "Roberta", "Bart", "LED"), GPT2), "Qwen2": QWEN2}
"""`tokenizer_class` in tokenizer_config.json, without "Tokenizer" and "Fast"."""
_BETWEEN_TOKENS = ("Roberta", "Bart", "LED")
"""Those that put a text between two tokens."""
_MODEL_TYPES = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gptj", "gpt_neo", "opt", "phi"), "GPT2"),
    **dict.fromkeys(("bart", "led"), "Bart"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2"),
}
"""`model_type` in config.json, which counts where no class is named."""

_LLAMA3_NAMED = {
    0: "begin_of_text",
    1: "end_of_text",
    4: "finetune_right_pad_id",
    6: "start_header_id",
    7: "end_header_id",
    8: "eom_id",
    9: "eot_id",
    10: "python_tag",
}
"""Control tokens of Llama 3.1, by their place after the ordinary tokens; Llama 3.0 uses fewer of the places."""
_LLAMA3_CONTROL = 256
LLAMA3_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
"""Tokens that end a text of Llama 3, a message and a turn."""
_TEKKEN_CONTROL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""Control tokens of a tekken.json that lists none (before version 7)."""


def byte_level_bpe(
    tokens: Sequence[str],
    merges: Sequence[Merge],
    splitting: Splitting,
    added: Mapping[str, bool],
    *,
    first: str = "",
    last: str = "",
) -> bytes:
    """A tokenizer.json.

    Args:
        tokens: The vocabulary in id order, bytes written as GPT-2's characters.
        merges: Pairs of pieces, the first to be merged first.
        splitting: How text is split into words.
        added: Tokens that are not made of pieces; whether each is a control token.
        first: Token before those of a text; "" = none.
        last: Token after those of a text; "" = none.

    Raises:
        DataError: The merges have pieces that the vocabulary has not.
    """
    import tokenizers

    pre = tokenizers.pre_tokenizers
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        model = tokenizers.models.BPE(vocabulary, list(merges), ignore_merges=splitting.whole_words)
    except Exception as error:  # the library raises nothing more specific
        raise DataError(
            f"The merges of a tokeniser must join pieces of its vocabulary, but do not: {error}."
        ) from error
    tokenizer = tokenizers.Tokenizer(model)
    if splitting.nfc:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    steps: list[Any] = [pre.Digits(individual_digits=True)] if splitting.digits else []
    steps += [pre.Split(tokenizers.Regex(pattern), behavior="isolated") for pattern in splitting.patterns]
    steps.append(pre.ByteLevel(add_prefix_space=splitting.prefix_space, use_regex=not splitting.patterns))
    tokenizer.pre_tokenizer = pre.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_tokens(
        [tokenizers.AddedToken(token, special=is_control, normalized=False) for token, is_control in added.items()]
    )
    around = [(token, vocabulary[token]) for token in (first, last) if token]
    if around:
        template = " ".join(filter(None, (first, "$A", last)))
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=around)
    return str(tokenizer.to_str()).encode("utf-8")


def from_vocab_and_merges(file: Path, stated: Mapping[str, Any], *, model_type: str | None) -> bytes:
    """tokenizer.json of a vocab.json and the merges.txt beside it.

    Args:
        file: The vocab.json.
        stated: tokenizer_config.json and special_tokens_map.json.
        model_type: Of config.json.

    Raises:
        DataError: A file is missing or cannot be read.
        UnsupportedError: How the tokeniser splits text is not known.
    """
    tokens = _tokens_by_id(file, _json(file))
    added = _added_tokens(file, stated)
    for number, token in sorted(added.items()):
        if number == len(tokens):
            tokens.append(token)
    controls = {token: True for token in (*added.values(), *_special_tokens(stated)) if token in set(tokens)}
    kind = _kind(file, stated, model_type)
    splitting = replace(_KINDS[kind], prefix_space=bool(stated.get("add_prefix_space")))
    first, last = _around(stated, kind)
    merges = _merges(file.with_name(MERGES_FILE))
    return byte_level_bpe(tokens, merges, splitting, controls, first=first, last=last)


def _kind(file: Path, stated: Mapping[str, Any], model_type: str | None) -> str:
    name = str(stated.get("tokenizer_class") or "")
    kind = name.removesuffix("Fast").removesuffix("Tokenizer") if name else _MODEL_TYPES.get(model_type or "", "")
    if kind not in _KINDS:
        said = f"tokenizer_class {name}" if name else f"model_type {model_type}"
        raise UnsupportedError(
            f"{file} must be of a tokeniser that splits text in a known way ({', '.join(_KINDS)}), but it has {said}.",
            hint="give a tokenizer.json with -tokenizer_model; -tokenizer_model none converts the weights alone",
        )
    return kind


def _around(stated: Mapping[str, Any], kind: str) -> tuple[str, str]:
    """The tokens before and after those of a text."""
    if kind in _BETWEEN_TOKENS:
        return token_content(stated.get("cls_token")) or "<s>", token_content(stated.get("sep_token")) or "</s>"
    first, last = (token_content(stated.get(f"{role}_token")) for role in ("bos", "eos"))
    return first * bool(stated.get("add_bos_token")), last * bool(stated.get("add_eos_token"))


def _added_tokens(file: Path, stated: Mapping[str, Any]) -> dict[int, str]:
    """Ids and names of the tokens beside the vocabulary: added_tokens.json, or `added_tokens_decoder`."""
    beside = file.with_name("added_tokens.json")
    found = {int(number): str(token) for token, number in (_json(beside) if beside.is_file() else {}).items()}
    decoder = stated.get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        if str(number).isdigit() and isinstance(token, dict) and isinstance(token.get("content"), str):
            found[int(number)] = token["content"]
    return found


def _special_tokens(stated: Mapping[str, Any]) -> list[str]:
    values = [value for key, value in stated.items() if key.endswith("_token")]
    values += stated.get("additional_special_tokens") or []
    return [name for name in map(token_content, values) if name]


def token_content(token: object) -> str:
    """The text of a special token, which is a string or an object with `content`; "" = none."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else ""


def _merges(file: Path) -> list[Merge]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} must hold the merges of a BPE, a pair a line, but cannot be read ({error})."
        ) from error
    lines = [line for line in lines[lines[:1] != [] and lines[0].startswith("#version") :] if line]
    pairs = [tuple(line.split(" ")) for line in lines]
    wrong = next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None)
    if wrong is not None:
        raise DataError(f"Each line of {file} must be two pieces and a space between them, but one is {wrong!r}.")
    return [(pair[0], pair[1]) for pair in pairs]


def is_tiktoken(file: Path) -> bool:
    """Whether the first line of a file is a token in Base64 and its rank."""
    with file.open("rb") as stream:
        return _ranked(stream.readline(4096)) is not None


def from_tiktoken(file: Path) -> bytes:
    """tokenizer.json of Meta's tokenizer.model for Llama 3: the file has no control tokens, they follow the others.

    Raises:
        DataError: The file cannot be read.
    """
    lines = file.read_bytes().splitlines()
    pairs = [_ranked(line) for line in lines]
    ranks = {pair[0]: pair[1] for pair in pairs if pair is not None}
    if len(ranks) != len(lines) or sorted(ranks.values()) != list(range(len(lines))):
        raise DataError(f"Each line of {file} must be a token in Base64 and its rank, 0, 1 ..., but not all are.")
    reserved = (number for number in range(_LLAMA3_CONTROL))
    controls = [
        f"<|{_LLAMA3_NAMED[place]}|>" if place in _LLAMA3_NAMED else f"<|reserved_special_token_{next(reserved)}|>"
        for place in range(_LLAMA3_CONTROL)
    ]
    tokens = [*(_characters(token) for token in ranks), *controls]
    return byte_level_bpe(tokens, _merges_of_ranks(ranks), LLAMA3, dict.fromkeys(controls, True), first=controls[0])


def from_tekken(file: Path) -> bytes:
    """tokenizer.json of Mistral's tekken.json, whose control tokens come first.

    Raises:
        DataError: The file cannot be read.
    """
    content = _json(file)
    try:
        settings = content["config"]
        count, size = int(settings["default_num_special_tokens"]), int(settings["default_vocab_size"])
        listed = content.get("special_tokens")
        names = _TEKKEN_CONTROL if listed is None else [str(token["token_str"]) for token in listed]
        entries = content["vocab"][: size - count]
        ranks = {base64.b64decode(entry["token_bytes"]): int(entry["rank"]) for entry in entries}
        splitting = Splitting((str(settings["pattern"]),), whole_words=True)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} must be a {TEKKEN_FILE} as Mistral writes it, but is not ({error!r}).") from error
    controls = [*names, *(f"<SPECIAL_{place}>" for place in range(len(names), count))]
    tokens = [*controls, *(_characters(token) for token in sorted(ranks, key=ranks.__getitem__))]
    first = "<s>" if "<s>" in controls else ""
    return byte_level_bpe(tokens, _merges_of_ranks(ranks), splitting, dict.fromkeys(controls, True), first=first)


def _ranked(line: bytes) -> tuple[bytes, int] | None:
    words = line.split()
    try:
        return (base64.b64decode(words[0], validate=True), int(words[1])) if len(words) == 2 else None
    except (binascii.Error, ValueError):
        return None


def _merges_of_ranks(ranks: Mapping[bytes, int]) -> list[Merge]:
    """The merges that make each token: all its splits into two tokens, since tiktoken ranks only the results."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [(left, right) for left, right in splits if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return [(_characters(left), _characters(right)) for left, right in merges]


def _characters(token: bytes) -> str:
    return "".join(map(byte_alphabet().__getitem__, token))


def _tokens_by_id(file: Path, table: Mapping[str, Any]) -> list[str]:
    tokens = {number: token for token, number in table.items() if isinstance(number, int)}
    if len(tokens) != len(table) or sorted(tokens) != list(range(len(table))):
        raise DataError(f"{file} must map tokens to the ids 0, 1 ..., each once, but does not.")
    return [tokens[number] for number in range(len(tokens))]


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} must be a JSON object, but cannot be read as one ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} must be a JSON object, but is a {type(content).__name__}.")
    return content
