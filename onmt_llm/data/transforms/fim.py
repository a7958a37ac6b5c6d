"""`fim`: fill in the middle (Bavarian et al. 2022, https://arxiv.org/abs/2207.14255), for language models.

A document is cut at two random characters, and its middle part is moved to the end, after a special token; all of it
is trained. The order is prefix, suffix, middle (`PSM`) or suffix, prefix, middle (`SPM`):

    PSM  <prefix> prefix <suffix> suffix <middle> middle
    SPM  <prefix><suffix> suffix <middle> prefix middle
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Fraction
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.errors import ConfigError
from onmt_llm.text.segment import Segment


class FimConfig(Section):
    """Options of `fim`: fill-in-the-middle training."""

    fim_rate: Fraction = 0.5
    """Training: fraction of documents whose middle is moved to the end; the others are not changed."""
    fim_spm_rate: Fraction = 0.5
    """Fraction of those that start with the suffix (SPM) instead of the prefix (PSM)."""
    fim_prefix_token: str = "<fim_prefix>"
    """Token before the prefix; `<|fim_prefix|>` for Qwen, `<PRE>` for Code Llama."""
    fim_middle_token: str = "<fim_middle>"
    """Token before the middle."""
    fim_suffix_token: str = "<fim_suffix>"
    """Token before the suffix."""


@TRANSFORMS.register("fim")
class Fim(Transform[FimConfig]):
    """Moves the middle of a text to its end. Pairs and conversations are not changed.

    Args:
        rate: Fraction of texts to change.
        spm_rate: Fraction of these in the order SPM.
        tokens: The special tokens before "prefix", "middle" and "suffix".
        active: Whether this is training.
    """

    section = "fim"
    Config = FimConfig
    needs_text = True

    def __init__(self, *, rate: float, spm_rate: float, tokens: Mapping[str, str], active: bool) -> None:
        super().__init__()
        self.rate = rate
        self.spm_rate = spm_rate
        self.tokens = tokens
        self.active = active
        self._random = random.Random(0)

    @classmethod
    def build(cls, config: FimConfig, corpus: CorpusConfig, context: TransformContext) -> Fim:
        if context.codec.task != "lm":
            raise ConfigError("Transform 'fim' must be used with a language model, but the model has an encoder.")
        prefix, middle, suffix = cls.added_tokens(config, corpus)
        return cls(
            rate=config.fim_rate,
            spm_rate=config.fim_spm_rate,
            tokens={"prefix": prefix, "middle": middle, "suffix": suffix},
            active=context.training,
        )

    @classmethod
    def added_tokens(cls, config: FimConfig, corpus: CorpusConfig) -> list[str]:
        return [config.fim_prefix_token, config.fim_middle_token, config.fim_suffix_token]

    def __call__(self, example: Example) -> Example | None:
        text = example.src[0].text
        if not self.active or example.tgt or len(example.src) != 1 or not text:
            return example
        if self._random.random() < self.rate:
            first, second = sorted(self._random.randint(0, len(text)) for _ in range(2))
            spm = self._random.random() < self.spm_rate
            example.src = self._moved(text[:first], text[first:second], text[second:], spm=spm)
        return example

    def reseed(self, seed: int) -> None:
        self._random.seed(seed)

    def _moved(self, prefix: str, middle: str, suffix: str, *, spm: bool) -> list[Segment]:
        begin, ask, end = (Segment(tokens=[self.tokens[name]]) for name in ("prefix", "middle", "suffix"))
        if spm:
            segments = [begin, end, Segment(suffix), ask, Segment(prefix + middle)]
        else:
            segments = [begin, Segment(prefix), end, Segment(suffix), ask, Segment(middle)]
        return [segment for segment in segments if segment.tokens or segment.text]
