"""`Transform`, the base class of all transforms, its context, and the registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from onmt_llm.config.checkpoint import TokenizerKind
from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.registry import Registry
from onmt_llm.text.codec import Codec
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.templates.message import Template
from onmt_llm.text.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class TransformContext:
    """What a transform may use besides its own options.

    Attributes:
        codec: Text side of the model.
        template: Chat template of the corpus, if any.
        training: Whether this is training; random transforms act in training only.
        zero_out_prompt_loss: Prompts are not trained.
        tokenizer: The model's tokeniser of the target side; after a tokeniser in the list, that one. None before the
            tokeniser at inference.
        src_tokenizer: The same of the source side.
    """

    codec: Codec
    template: Template | None = None
    training: bool = False
    zero_out_prompt_loss: bool = False
    tokenizer: Tokenizer | None = None
    src_tokenizer: Tokenizer | None = None

    @property
    def control_tokens(self) -> frozenset[str]:
        """Tokens that are never produced from text."""
        return self.codec.control_tokens(self.template)


ConfigT = TypeVar("ConfigT", bound=Section)


class Transform(Generic[ConfigT]):
    """Changes or drops the examples of one corpus.

    A subclass is registered in `TRANSFORMS` under the name that users list. It has a `Config` with its options (filed
    under `section`; several transforms may share one), builds itself from them in `build`, and implements `__call__`.
    It may override `batch` if its library is faster on many texts, or if it splits or joins examples, `undo` to restore
    the original form of a decoded output, and `reseed` if it draws random numbers. It may change examples in place. It
    receives the examples of one bucket at a time and must not keep state between buckets, which are prepared in any
    order, by any process.

    Attributes:
        dropped: Number of dropped examples, by reason; one that was joined to another is `merged`.
        made: Number of additional examples, beyond one per input.
        truncated: Number of truncated examples.
    """

    name: ClassVar[str]
    section: ClassVar[str]
    Config: ClassVar[type[Section]]
    tokenizes: ClassVar[bool] = False
    """Turns text into tokens."""
    kind: ClassVar[TokenizerKind | None] = None
    """Kind of the tokenisers that the options of section `subword` specify for it; None = it uses none."""
    needs_text: ClassVar[bool] = False
    """Must come before the tokeniser."""
    counts_tokens: ClassVar[bool] = False
    """Works on text too, but is meant for tokens: if no tokeniser is listed, the default one is inserted before it."""
    needs_tokens: ClassVar[bool] = False
    """Must come after the tokeniser."""
    needs_neighbours: ClassVar[bool] = False
    """Processes successive records together, which must be in file order."""
    compares: ClassVar[bool] = False
    """The result for an example depends on the others of its bucket."""
    at_inference: ClassVar[bool] = False
    """Also applies to prompts at inference, as to the sources in training."""
    rewrites: ClassVar[bool] = False
    """Changes words, so that word alignments and word features no longer match."""
    inserts_text: ClassVar[bool] = False
    """Its `added_tokens` are inserted into text, so the tokeniser must keep them whole."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.made = 0
        self.truncated = 0

    @property
    def draws(self) -> bool:
        """Whether the result depends on random numbers."""
        return type(self).reseed is not Transform.reseed

    @classmethod
    def build(cls, config: ConfigT, corpus: CorpusConfig, context: TransformContext) -> Transform[ConfigT]:
        """The transform as configured for one corpus; may open files."""
        raise NotImplementedError

    @classmethod
    def added_tokens(cls, config: ConfigT, corpus: CorpusConfig) -> list[str]:
        """Tokens that it adds to examples; they must be in the vocabulary."""
        return []

    @classmethod
    def fixed_tokens(cls, config: ConfigT, tokenizers: Sequence[Tokenizer], *, on_tokens: bool) -> list[str]:
        """Words of the user that it puts into every example and that are tokens there; the vocabulary must have them.

        Args:
            config: Its options.
            tokenizers: Those of both sides.
            on_tokens: It comes after the tokeniser.
        """
        return []

    def __call__(self, example: Example) -> Example | None:
        """The changed example, or None if it is dropped (counted in `dropped`)."""
        raise NotImplementedError

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        """The same for many examples, without those that are dropped."""
        return [changed for example in examples if (changed := self(example)) is not None]

    def undo(self, output: str | list[str]) -> str | list[str]:
        """Reverse the change in a model's output: tokens, or text after detokenisation."""
        return output

    def reseed(self, seed: int) -> None:
        """Seed the random numbers, so that a resumed run repeats them."""


class _TransformRegistry(Registry[type[Transform[Any]]]):
    """The registered transforms; the name under which a class is registered becomes its `name`."""

    def register(self, name: str) -> Callable[[type[Transform[Any]]], type[Transform[Any]]]:
        add = super().register(name)

        def add_named(transform: type[Transform[Any]]) -> type[Transform[Any]]:
            transform.name = name
            return add(transform)

        return add_named


TRANSFORMS = _TransformRegistry("transform")


def kept_whole(words: Sequence[str], tokenizers: Sequence[Tokenizer]) -> list[str]:
    """The words that are one token of a tokeniser without its own vocabulary, such as one that splits at spaces."""
    if not words:
        return []
    without_pieces = [tokenizer for tokenizer in tokenizers if tokenizer.vocab_tokens() is None]
    return [word for word in words if any(word in each.encode(from_line(word)) for each in without_pieces)]
