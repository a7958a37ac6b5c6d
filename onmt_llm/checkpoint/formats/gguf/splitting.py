"""How byte-level tokenisers of GGUF files split a text into words: `tokenizer.ggml.pre`.

The patterns are those of the models' own tokenizer.json
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp names them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onmt_llm.checkpoint.formats.byte_level_bpe import DIGITS_APART, GPT2, LLAMA3, QWEN2, Splitting
from onmt_llm.errors import UnsupportedError

_CONTRACTIONS, _SPACES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLOOM_WORDS = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ"
    "-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰"
    "-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


def _cased(end: str) -> str:
    """Words that change from upper to lower case at most once."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{end}|{start}{_UPPER}+{_LOWER}*{end}"


_TEKKEN = Splitting((rf"{_cased('')}|\p{{N}}|{_MARKS}|{_SPACES}",), whole_words=True)
_GPT4O = Splitting((rf"{_cased(f'{_CONTRACTIONS}?')}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}",))
_FALCON = Splitting((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2_WORDS, "[0-9][0-9][0-9]"))
_DEEPSEEK = Splitting(
    (
        *(r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$"),
        *("[一-龥ࠀ-一가-퟿]+", r"\p{N}+"),
    )
)
_DEEPSEEK_CODER = Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"))
_DEEPSEEK3 = Splitting(
    (
        *(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+"),
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
    )
)

_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
_WITH_BOS = (*_LLAMA3_NAMES, "tekken")

SPLITTINGS: Mapping[str, Splitting] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS_APART),
    **dict.fromkeys((*_LLAMA3_NAMES, "glm4", "glm5"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), replace(LLAMA3, whole_words=False)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2),
    "stablelm2": replace(QWEN2, nfc=False),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "falcon": _FALCON,
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Splitting((_BLOOM_WORDS,))),
    "viking": Splitting((_BLOOM_WORDS, r"\p{N}")),
    "deepseek-llm": _DEEPSEEK,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": _DEEPSEEK3,
}


def splitting(name: str) -> Splitting:
    """How a tokeniser of this name splits text.

    Raises:
        UnsupportedError: The name is not known.
    """
    if name in SPLITTINGS:
        return SPLITTINGS[name]
    raise UnsupportedError(
        f"tokenizer.ggml.pre of a GGUF file must be one of {', '.join(SPLITTINGS)}, but is '{name}'.",
        hint="convert the model's Hugging Face files instead (-source hf)",
    )


def begins_with_bos(name: str) -> bool:
    """Whether a text begins with bos where no key says so, as in llama.cpp."""
    return name in _WITH_BOS
