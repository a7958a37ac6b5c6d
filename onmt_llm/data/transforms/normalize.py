"""`normalize`: Moses punctuation normalisation with sacremoses."""

from __future__ import annotations

from collections.abc import Callable

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example, rewrite_both
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.optional import require


class NormalizeConfig(Section):
    """Options of `normalize`: Moses punctuation normalisation."""

    penn: bool = True
    """Replace the quotes of the Penn Treebank (` and '') with ordinary ones."""
    norm_quote_commas: bool = True
    """Put quotes and commas in the order of the language."""
    norm_numbers: bool = True
    """Use the number separators of the language."""
    pre_replace_unicode_punct: bool = False
    """First replace full-width and other Unicode punctuation with ASCII."""
    post_remove_control_chars: bool = False
    """Finally remove control characters."""


@TRANSFORMS.register("normalize")
class Normalize(Transform[NormalizeConfig]):
    """Normalises punctuation by the rules of the languages (`src_lang`, `tgt_lang`); line breaks are kept.

    Args:
        src: Normalises a line of the source.
        tgt: Normalises a line of the target.
    """

    section = "normalize"
    Config = NormalizeConfig
    rewrites = True
    needs_text = True
    at_inference = True

    def __init__(self, src: Callable[[str], str], tgt: Callable[[str], str]) -> None:
        super().__init__()
        self.src = src
        self.tgt = tgt

    @classmethod
    def build(cls, config: NormalizeConfig, corpus: CorpusConfig, context: TransformContext) -> Normalize:
        src, tgt = context.codec.languages
        return cls(_normalizer(config, src), _normalizer(config, tgt))

    def __call__(self, example: Example) -> Example | None:
        return rewrite_both(example, self.src, self.tgt)


def _normalizer(config: NormalizeConfig, language: str) -> Callable[[str], str]:
    normalize = (
        require("sacremoses", "transform 'normalize'")
        .MosesPunctNormalizer(
            lang=language.partition("_")[0],  # en of en_XX
            penn=config.penn,
            norm_quote_commas=config.norm_quote_commas,
            norm_numbers=config.norm_numbers,
            pre_replace_unicode_punct=config.pre_replace_unicode_punct,
            post_remove_control_chars=config.post_remove_control_chars,
        )
        .normalize
    )
    # line by line: the rules treat a line break as a space or a control character
    return lambda text: "\n".join(normalize(line) for line in text.split("\n"))
