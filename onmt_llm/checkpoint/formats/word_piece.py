"""BERT's vocab.txt (WordPiece) as tokenizer.json; some GPT-2 models, most of them Chinese, have this tokeniser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onmt_llm.errors import DataError

WORD_PIECE_FILE = "vocab.txt"


def from_vocab_txt(file: Path, stated: Mapping[str, Any]) -> bytes:
    """tokenizer.json of a vocab.txt with a piece a line.

    Args:
        file: The vocab.txt.
        stated: tokenizer_config.json; BERT's defaults count for what it does not say.

    Raises:
        DataError: The file cannot be read, or lacks one of the tokens that BERT adds.
    """
    import tokenizers

    try:
        pieces = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{file} must hold a piece a line, but cannot be read ({error}).") from error
    numbers = {piece: number for number, piece in enumerate(pieces)}
    first, last, unknown = (str(stated.get(f"{role}_token") or f"[{role.upper()}]") for role in ("cls", "sep", "unk"))
    missing = [token for token in (first, last, unknown) if token not in numbers]
    if missing or len(numbers) != len(pieces):
        raise DataError(
            f"{file} must hold each piece once, and the tokens {first}, {last} and {unknown}, but "
            + (f"lacks {', '.join(missing)}." if missing else "repeats some.")
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(numbers, unk_token=unknown))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(stated.get("tokenize_chinese_chars", True)),
        strip_accents=stated.get("strip_accents"),
        lowercase=bool(stated.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, numbers[first]), (last, numbers[last])]
    )
    controls = [token for token in (unknown, last, "[PAD]", first, "[MASK]") if token in numbers]
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in controls])
    return str(tokenizer.to_str()).encode("utf-8")
