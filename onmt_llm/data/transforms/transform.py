"""`Transform`, the contract of all transforms, its context, and the registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.config.task import Task
from onmt_llm.data.example import Example
from onmt_llm.registry import Registry
from onmt_llm.text.codec import Codec
from onmt_llm.text.templates.message import Template
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.vocab import Vocab


@dataclass(frozen=True)
class TransformContext:
    """What a transform may know besides its own options.

    Attributes:
        codec: Text side of the model.
        template: Layout of the corpus' conversations, if it has any.
        training: Random transforms act in training only.
        zero_out_prompt_loss: Prompts are not trained.
        tokenizer: The model's tokeniser of the target side; for a transform behind a tokeniser, that one. None in front
            of the tokeniser at inference.
        src_tokenizer: The same of the source side.
    """

    codec: Codec
    template: Template | None = None
    training: bool = False
    zero_out_prompt_loss: bool = False
    tokenizer: Tokenizer | None = None
    src_tokenizer: Tokenizer | None = None

    @property
    def task(self) -> Task:
        """A language model reads source and target as one text."""
        return self.codec.task

    @property
    def add_bos(self) -> bool:
        """A language model's input begins with BOS, which counts towards its length."""
        return self.codec.config.specials.add_bos

    @property
    def bos(self) -> str | None:
        """The token that training examples begin with; None if they begin without one."""
        return self.codec.bos

    @property
    def vocab(self) -> Vocab:
        """Tokens of the target side."""
        return self.codec.vocab

    @property
    def src_vocab(self) -> Vocab:
        """Tokens of the source side."""
        return self.codec.src_vocab

    @property
    def control_tokens(self) -> frozenset[str]:
        """Tokens that no text may be encoded into."""
        return self.codec.control_tokens(self.template)


ConfigT = TypeVar("ConfigT", bound=Section)


class Transform(Generic[ConfigT]):
    """Changes or drops examples, of one corpus.

    A subclass is registered in `TRANSFORMS` under the name that users list. It has a `Config` with its options (filed
    under `section`; several transforms may share one), builds itself from them in `build`, and implements `__call__`.
    It may override `batch` where its library is faster on many texts, or where it makes several examples of one or one
    of several, `undo` to give a decoded output its original form, and `reseed` if it draws random numbers. It may
    change the example that it is given. It is given the examples of one bucket at a time, and must remember nothing
    from one to the next: buckets are prepared in any order, by any process.

    Attributes:
        dropped: How many examples it has dropped, by reason; one that became a part of another is `merged`.
        made: How many examples it has made beyond one for each that it was given.
        truncated: How many examples it has truncated.
    """

    name: ClassVar[str]
    section: ClassVar[str]
    Config: ClassVar[type[Section]]
    tokenizes: ClassVar[bool] = False
    """Turns text into tokens."""
    needs_text: ClassVar[bool] = False
    """Must stand before the tokeniser."""
    counts_tokens: ClassVar[bool] = False
    """Works on text too, but is meant for tokens: where no tokeniser is listed, the default one goes before it."""
    needs_tokens: ClassVar[bool] = False
    """Must stand behind the tokeniser."""
    needs_neighbours: ClassVar[bool] = False
    """Looks at successive records together: they must come in the order of the file."""
    compares: ClassVar[bool] = False
    """The result for an example depends on the others of its bucket."""
    at_inference: ClassVar[bool] = False
    """Acts on what a model is asked, too, as it does on the sources of training."""
    rewrites: ClassVar[bool] = False
    """Puts other words in the place of the example's: neither word alignments nor word features can follow."""
    inserts_text: ClassVar[bool] = False
    """Its `added_tokens` are put into text, where it is the tokeniser that must keep them in one piece."""

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
        """Tokens that it adds to examples; the vocabulary must hold them."""
        return []

    def __call__(self, example: Example) -> Example | None:
        """The changed example, or None when it is dropped (counted in `dropped`)."""
        raise NotImplementedError

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        """The same for many examples, without those that are dropped."""
        return [changed for example in examples if (changed := self(example)) is not None]

    def undo(self, output: str | list[str]) -> str | list[str]:
        """Reverse the change in what a model has produced: tokens, or text once a tokeniser has joined them."""
        return output

    def reseed(self, seed: int) -> None:
        """Begin a known sequence of random numbers, so that a restored run repeats it."""


class _TransformRegistry(Registry[type[Transform[Any]]]):
    """The registered transforms; the name under which a class is registered becomes its `name`."""

    def register(self, name: str) -> Callable[[type[Transform[Any]]], type[Transform[Any]]]:
        add = super().register(name)

        def add_named(transform: type[Transform[Any]]) -> type[Transform[Any]]:
            transform.name = name
            return add(transform)

        return add_named


TRANSFORMS = _TransformRegistry("transform")


def transform_class(name: str) -> type[Transform[Any]]:
    """The transform that users list under this name.

    Raises:
        ConfigError: There is none.
    """
    return TRANSFORMS.get(name)
