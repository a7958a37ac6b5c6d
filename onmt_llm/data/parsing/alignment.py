"""Word alignments in Pharaoh's format, and their conversion from words to tokens.

OpenNMT-py counts tokens, and takes no tokenising transform beside an alignment. Here either unit may be given: with
`tokens` the files are tokenised already, or the alignment was made of the tokens; with `words` (what fast_align and its
similar tools write for plain text), each aligned word stands for all of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.transforms.affix import Prefix
from onmt_llm.data.transforms.tokenize import Tokenize
from onmt_llm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from onmt_llm.data.transforms.transform import Transform
    from onmt_llm.text.tokenizers.base import Tokenizer


def parse_pharaoh(line: str, *, where: str) -> list[tuple[int, int]]:
    """Parse `0-0 1-2` into (source, target) pairs; an empty line has none.

    Raises:
        DataError: The line holds anything else.
    """
    pairs = []
    for item in line.split():
        source, dash, target = item.partition("-")
        if not (dash and source.isdecimal() and target.isdecimal()):
            raise DataError(f"{where} must hold pairs such as 0-0 1-2, but holds '{item}'.")
        pairs.append((int(source), int(target)))
    return pairs


def check_alignable(corpus: str, transforms: Sequence[Transform]) -> None:
    """Refuse transforms that would invalidate an alignment.

    Raises:
        ConfigError: The corpus has one.
    """
    moving = [t.name for t in transforms if t.rewrites or (isinstance(t, Prefix) and (t.src or t.tgt))]
    if moving:
        raise ConfigError(
            f"Corpus '{corpus}' must not move words that its path_align counts, but the transform '{moving[0]}' does.",
            hint="apply it to the files before you align them",
        )


def align_tokens(example: Example, transforms: Sequence[Transform], *, words: bool) -> None:
    """Check an example's alignment against its tokens, after carrying it over from words where it counts `words`.

    Raises:
        DataError: A pair names a token, or word, that does not exist; the message begins with a verb.
    """
    if words:
        example.align = to_tokens(example, next(each for each in transforms if isinstance(each, Tokenize)))
    check_pairs(example)


def check_pairs(example: Example) -> None:
    """Refuse pairs that refer to tokens outside the example.

    Raises:
        DataError: There is one; the message begins with a verb.
    """
    sizes = len(side_tokens(example.src)), len(side_tokens(example.tgt))
    for source, target in example.align or ():
        if source >= sizes[0] or target >= sizes[1]:
            raise DataError(
                f"must align the tokens of its example, {sizes[0]} and {sizes[1]}, but holds {source}-{target}.",
                hint="align_unit: words, if it counts the words of files that are tokenised here",
            )


def to_tokens(example: Example, tokenize: Tokenize) -> list[tuple[int, int]]:
    """Convert pairs of words to pairs of tokens.

    Raises:
        DataError: A pair names a word that does not exist; the message begins with a verb.
    """
    sides = [
        word_tokens(side_tokens(side), tokenizer)
        for side, tokenizer in ((example.src, tokenize.src), (example.tgt, tokenize.tgt))
    ]
    pairs = []
    for source, target in example.align or ():
        if source >= len(sides[0]) or target >= len(sides[1]):
            raise DataError(
                f"must align the words of its example, {len(sides[0])} and {len(sides[1])}, "
                f"but holds {source}-{target}."
            )
        pairs += [(s, t) for s in sides[0][source] for t in sides[1][target]]
    return pairs


def word_tokens(pieces: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The positions of the tokens of each space-separated word.

    A token belongs to the last word of the decoded text up to and including it. This holds for every tokeniser,
    however it marks word boundaries.
    """
    words: list[list[int]] = []
    for place in range(len(pieces)):
        begun = max(1, len(tokenizer.decode(list(pieces[: place + 1])).split())) - len(words)
        if begun > 0:
            words += [[place] for _ in range(begun)]
        else:
            words[-1].append(place)
    return words
