"""`inlinetags`: put numbered tags around (or before) a phrase and its translation, to teach a model to copy them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, field_validator

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Fraction, Length
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.augment import Augment, read_pairs, set_source, source_text
from onmt_llm.data.transforms.phrases import Found, Phrases, exact_words, locate
from onmt_llm.data.transforms.transform import TRANSFORMS, TransformContext
from onmt_llm.text.segment import Segment

TagSpan = tuple[int, int, str, str]
"""(start, end, text to insert before, text to insert after)."""

_PAIRED = 0.75  # as in OpenNMT-py: paired tags are more frequent in documents


class InlineTagsConfig(Section):
    """Options of `inlinetags`: add inline tags to source and target."""

    tags_dictionary_path: str | None = None
    """Dictionary of phrases that may be tagged: lines `source<TAB>target`."""
    tags_corpus_ratio: Fraction = 0.1
    """Fraction of examples that get tags."""
    max_tags: Length = 12
    """Maximum number of tags, or pairs of tags, per example."""
    paired_stag: str = "｟ph_#_beg｠"
    """Opening tag of a pair; `#` is replaced with its number."""
    paired_etag: str = "｟ph_#_end｠"
    """Closing tag of a pair."""
    isolated_tag: str = "｟ph_#_std｠"
    """Tag that is not part of a pair."""
    src_delimiter: str = Field("｟fuzzy｠", min_length=1)
    """Delimiter between a source and its fuzzy match, which gets no tags."""

    @field_validator("paired_stag", "paired_etag", "isolated_tag")
    @classmethod
    def _numbered(cls, value: str) -> str:
        if value.count("#") != 1:
            raise ValueError(f"must hold one # for the number of the tag, but is {value}")
        return value


@TRANSFORMS.register("inlinetags")
class InlineTags(Augment[InlineTagsConfig]):
    """Tags dictionary phrases of the source and their translations in the target; in training only.

    Args:
        entries: Phrases and their translations.
        config: Format and number of tags.
        training: Whether this is training.
    """

    section = "inlinetags"
    Config = InlineTagsConfig

    def __init__(self, entries: Sequence[tuple[str, str]], config: InlineTagsConfig, *, training: bool) -> None:
        super().__init__(ratio=config.tags_corpus_ratio, training=training)
        self._phrases = Phrases(entries, exact_words)
        self._config = config

    @classmethod
    def build(cls, config: InlineTagsConfig, corpus: CorpusConfig, context: TransformContext) -> InlineTags:
        entries = read_pairs(config.tags_dictionary_path, option="tags_dictionary_path")
        return cls(entries, config, training=context.training)

    @classmethod
    def added_tokens(cls, config: InlineTagsConfig, corpus: CorpusConfig) -> list[str]:
        forms = (config.paired_stag, config.paired_etag, config.isolated_tag)
        return [form.replace("#", str(number)) for number in range(1, 2 * config.max_tags) for form in forms]

    def augment(self, examples: Sequence[Example], *, limit: int) -> int:
        return sum(self._tag(example) for example in examples) if self.training else 0

    def _tag(self, example: Example) -> bool:
        if len(example.tgt) != 1 or not example.tgt[0].text:
            return False
        source, delimiter, match = source_text(example).partition(self._config.src_delimiter)
        target = example.tgt[0].text
        pairs = self._pairs(source, target)
        if not pairs:
            return False
        tags = self._draw_tags(len(pairs))
        tagged = [(found.start, found.end, *tag) for (found, _), tag in zip(pairs, tags, strict=True)]
        answered = [(*place, *tag) for (_, place), tag in zip(pairs, tags, strict=True)]
        set_source(example, with_tags(source, tagged) + delimiter + match)
        example.tgt = [Segment(with_tags(target, answered), train_on=example.tgt[0].train_on)]
        return True

    def _pairs(self, source: str, target: str) -> list[tuple[Found, tuple[int, int]]]:
        """Phrases of the source whose translation occurs in the target, without overlaps."""
        words = exact_words(target)
        taken: list[tuple[int, int]] = []
        pairs: list[tuple[Found, tuple[int, int]]] = []
        for found in self._phrases.find(source):
            place = locate(exact_words(found.entry[1]), words, taken)
            if place is not None and len(pairs) < self._config.max_tags:
                taken.append((place.start, place.end))
                pairs.append((found, taken[-1]))
        return pairs

    def _draw_tags(self, count: int) -> list[tuple[str, str]]:
        """The tags before and after each phrase. The first number is random, with a preference for low numbers."""
        config = self._config
        weights = range(config.max_tags, 0, -1)
        paired, single = self.random.choices(range(1, config.max_tags + 1), weights=weights, k=2)
        tags = []
        for _ in range(count):
            if self.random.random() < _PAIRED:
                tags.append(
                    (config.paired_stag.replace("#", str(paired)), config.paired_etag.replace("#", str(paired)))
                )
                paired += 1
            else:
                tags.append((config.isolated_tag.replace("#", str(single)), ""))
                single += 1
        return tags


def with_tags(text: str, spans: Sequence[TagSpan]) -> str:
    """Insert texts before and after some spans, separated by spaces."""
    parts = []
    end = 0
    for start, stop, before, behind in sorted(spans):
        between = text[end:start]
        gap = "" if not between or between[-1].isspace() else " "
        parts.append(f"{between}{gap}{before} {text[start:stop]}" + (f" {behind}" if behind else ""))
        end = stop
    return "".join([*parts, text[end:]])
