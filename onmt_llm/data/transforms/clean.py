"""`clean`: drop noisy lines by rules, as in OpenNMT-py.

Languages are identified with fastText's lid.176, the model that OpenNMT-py downloads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from operator import eq
from typing import Annotated

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import PositiveOrZero
from onmt_llm.config.section import Names, Section
from onmt_llm.data.example import Example, text_of, words
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.errors import ConfigError
from onmt_llm.optional import require
from onmt_llm.text.detection import LanguageDetector

_FOUR_OF_A_KIND = re.compile(r"([^0-9])\1{3}")
_TIMES = 3  # repetitions in a row for which an example is dropped


class CleanConfig(Section):
    """Options of `clean`: rules that drop noisy examples. Each rule checks both source and target."""

    src_eq_tgt: bool = True
    """Drop examples whose source and target are equal."""
    same_char: bool = True
    """Drop examples with a character (other than a digit) four times in a row."""
    same_word: bool = True
    """Drop examples with a word or phrase three times in a row."""
    scripts_ok: Names[str] = Field(default_factory=lambda: ["Latin", "Common"])
    """Unicode scripts that are allowed; combining marks always are. Empty = all."""
    scripts_nok: Names[str] = Field(default_factory=list)
    """Unicode scripts that are not allowed."""
    src_tgt_ratio: Annotated[float, Field(ge=1, le=1e9)] = 2
    """Drop examples in which one side has more than this many times the words of the other (1 is added to both
    counts)."""
    avg_tok_min: PositiveOrZero = 3
    """Drop examples with fewer characters per word, including spaces."""
    avg_tok_max: PositiveOrZero = 20
    """Drop examples with more characters per word, including spaces."""
    langid: Names[str] = Field(default_factory=list)
    """Allowed languages of both sides, by code (`en`); empty = any. Set the two languages for each corpus."""


LineRule = Callable[[str], bool]


@TRANSFORMS.register("clean")
class Clean(Transform[CleanConfig]):
    """Drops examples that break a rule; each is counted under the name of the option that dropped it.

    Args:
        config: The rules and their limits.
    """

    section = "clean"
    Config = CleanConfig
    needs_text = True

    def __init__(self, config: CleanConfig) -> None:
        super().__init__()
        self._drop_copies = config.src_eq_tgt
        self._ratio = config.src_tgt_ratio
        self._rules = _rules(config)

    @classmethod
    def build(cls, config: CleanConfig, corpus: CorpusConfig, context: TransformContext) -> Clean:
        return cls(config)

    def __call__(self, example: Example) -> Example | None:
        broken = self._broken(text_of(example.src), text_of(example.tgt))
        if broken is None:
            return example
        self.dropped[broken] += 1
        return None

    def _broken(self, src: str, tgt: str) -> str | None:
        """Name of the first rule that the example breaks."""
        for name, breaks in self._rules:
            if breaks(src):
                return name
        if not tgt:
            return None
        if self._drop_copies and src == tgt:
            return "src_eq_tgt"
        ratio = (len(words(src)) + 1) / (len(words(tgt)) + 1)
        if not 1 / self._ratio <= ratio <= self._ratio:
            return "src_tgt_ratio"
        return next((name for name, breaks in self._rules if breaks(tgt)), None)


def _rules(config: CleanConfig) -> list[tuple[str, LineRule]]:
    """The rules for each side, cheap ones first."""
    rules: list[tuple[str, LineRule]] = []
    if config.same_char:
        rules.append(("same_char", lambda text: _FOUR_OF_A_KIND.search(text) is not None))
    if config.same_word:
        rules.append(("same_word", lambda text: repeats_phrase(words(text))))
    rules.append(("avg_tok_min", lambda text: len(text) / len(words(text)) < config.avg_tok_min))
    rules.append(("avg_tok_max", lambda text: len(text) / len(words(text)) > config.avg_tok_max))
    if config.scripts_ok:
        rules.append(("scripts_ok", _finds(config.scripts_ok, "scripts_ok", outside=True)))
    if config.scripts_nok:
        rules.append(("scripts_nok", _finds(config.scripts_nok, "scripts_nok", outside=False)))
    if config.langid:
        detector, wanted = LanguageDetector("transform 'clean' with langid"), frozenset(config.langid)
        rules.append(("langid", lambda text: not {name for name, _ in detector.detect(text)} & wanted))
    return rules


def repeats_phrase(sequence: Sequence[str]) -> bool:
    """Whether a phrase of whole words occurs three times in a row."""
    counts = Counter(sequence)
    stretch: list[str] = []  # consecutive words that are frequent enough to be part of such a phrase
    for word in [*sequence, None]:
        if word is not None and counts[word] >= _TIMES:
            stretch.append(word)
        elif len(stretch) >= _TIMES and _is_periodic(stretch):
            return True
        else:
            stretch = []
    return False


def _is_periodic(sequence: list[str]) -> bool:
    for period in range(1, len(sequence) // _TIMES + 1):
        run = 0
        for same in map(eq, sequence, sequence[period:]):
            run = run + 1 if same else 0
            if run == (_TIMES - 1) * period:
                return True
    return False


def _finds(scripts: Sequence[str], option: str, *, outside: bool) -> LineRule:
    """A rule that finds a character in these scripts, or outside them.

    Raises:
        ConfigError: A script is not in Unicode.
    """
    regex = require("regex", f"transform 'clean' with {option}")
    # combining marks take the script of their base character
    names = [*scripts, "Inherited"] if outside else scripts
    for name in names:
        try:
            regex.compile(rf"\p{{Script={name}}}")
        except regex.error:
            raise ConfigError(
                f"`{option}` must name scripts of Unicode, but names '{name}'.", hint="for example Latin, Greek, Han"
            ) from None
    inside = "".join(rf"\p{{Script={name}}}" for name in names)
    search = regex.compile(f"[{'^' if outside else ''}{inside}]").search
    return lambda text: search(text) is not None
