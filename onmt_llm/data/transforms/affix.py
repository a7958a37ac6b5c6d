"""`prefix` and `suffix`: fixed text or tokens around the sides of every example of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.transform import TRANSFORMS, ConfigT, Transform, TransformContext, kept_whole
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.base import Tokenizer


class PrefixConfig(Section):
    """Options of `prefix`: text before each example."""

    src_prefix: str = ""
    """Text to prepend to each source."""
    tgt_prefix: str = ""
    """Text to prepend to each target; removed from the start of generated answers."""


class SuffixConfig(Section):
    """Options of `suffix`: text after each example."""

    src_suffix: str = ""
    """Text to append to each source."""
    tgt_suffix: str = ""
    """Text to append to each target; removed from the end of generated answers."""


class _Affix(Transform[ConfigT]):
    """Base class of both. Before the tokeniser an affix is text; after it, a list of tokens (`</s> eng_Latn`).

    Args:
        src: Affix of the source side; empty = none.
        tgt: Affix of the target side; empty = none.
    """

    at_inference = True

    def __init__(self, *, src: str, tgt: str) -> None:
        super().__init__()
        self.src = src
        self.tgt = tgt

    def __call__(self, example: Example) -> Example | None:
        if self.src and example.src:
            example.src = self.add(example.src, self.src)
        if self.tgt and example.tgt:
            example.tgt = self.add(example.tgt, self.tgt)
        return example

    def add(self, segments: list[Segment], affix: str) -> list[Segment]:
        raise NotImplementedError


@TRANSFORMS.register("prefix")
class Prefix(_Affix[PrefixConfig]):
    """Prepends text (or tokens, if listed after the tokeniser) to each side."""

    section = "prefix"
    Config = PrefixConfig

    @classmethod
    def build(cls, config: PrefixConfig, corpus: CorpusConfig, context: TransformContext) -> Prefix:
        return cls(src=config.src_prefix, tgt=config.tgt_prefix)

    @classmethod
    def fixed_tokens(cls, config: PrefixConfig, tokenizers: Sequence[Tokenizer], *, on_tokens: bool) -> list[str]:
        return _tokens(f"{config.src_prefix} {config.tgt_prefix}", tokenizers, on_tokens=on_tokens)

    def add(self, segments: list[Segment], affix: str) -> list[Segment]:
        first = segments[0]
        if first.text is None:
            return [Segment(tokens=affix.split(), train_on=first.train_on), *segments]
        return [first.like(text=_with_space_after(affix) + first.text), *segments[1:]]

    def undo(self, output: str | list[str]) -> str | list[str]:
        if isinstance(output, str):
            text = _with_space_after(self.tgt) if self.tgt else ""
            return "" if output == text.rstrip(" ") else output.removeprefix(text)
        tokens = self.tgt.split()
        return output[len(tokens) :] if tokens and output[: len(tokens)] == tokens else output


@TRANSFORMS.register("suffix")
class Suffix(_Affix[SuffixConfig]):
    """Appends text (or tokens, if listed after the tokeniser) to each side."""

    section = "suffix"
    Config = SuffixConfig

    @classmethod
    def build(cls, config: SuffixConfig, corpus: CorpusConfig, context: TransformContext) -> Suffix:
        return cls(src=config.src_suffix, tgt=config.tgt_suffix)

    @classmethod
    def fixed_tokens(cls, config: SuffixConfig, tokenizers: Sequence[Tokenizer], *, on_tokens: bool) -> list[str]:
        return _tokens(f"{config.src_suffix} {config.tgt_suffix}", tokenizers, on_tokens=on_tokens)

    def add(self, segments: list[Segment], affix: str) -> list[Segment]:
        last = segments[-1]
        if last.text is None:
            return [*segments, Segment(tokens=affix.split(), train_on=last.train_on)]
        return [*segments[:-1], last.like(text=last.text + _with_space_before(affix))]

    def undo(self, output: str | list[str]) -> str | list[str]:
        if isinstance(output, str):
            text = _with_space_before(self.tgt) if self.tgt else ""
            return "" if output == text.lstrip(" ") else output.removesuffix(text)
        tokens = self.tgt.split()
        return output[: -len(tokens)] if tokens and output[-len(tokens) :] == tokens else output


def _tokens(affixes: str, tokenizers: Sequence[Tokenizer], *, on_tokens: bool) -> list[str]:
    words = affixes.split()
    return words if on_tokens else kept_whole(words, tokenizers)


def _with_space_after(affix: str) -> str:
    # the space depends only on the affix, so that `undo` restores every text
    text = from_line(affix)
    return text if text[-1:].isspace() else f"{text} "


def _with_space_before(affix: str) -> str:
    text = from_line(affix)
    return text if text[:1].isspace() else f" {text}"
