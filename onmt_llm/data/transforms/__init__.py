"""Transforms: what happens to an example between the corpus and the batch.

The import list below is the list of all transforms; a new one is a file here and a line there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.config.section import Section
from onmt_llm.data.transforms import (
    affix,
    bart,
    features,
    filters,
    fim,
    fuzzymatch,
    inlinetags,
    mask,
    noise,
    terminology,
    tokenize,
)
from onmt_llm.data.transforms.tokenize import default_tokenize, tokenizer_specs
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext, transform_class
from onmt_llm.errors import ConfigError

__all__ = [
    "TRANSFORMS",
    "Transform",
    "TransformContext",
    "added_tokens",
    "affix",
    "bart",
    "build_transforms",
    "features",
    "filters",
    "fim",
    "fuzzymatch",
    "inlinetags",
    "mask",
    "noise",
    "sections",
    "terminology",
    "tokenize",
    "tokenizer_specs",
    "transform_class",
    "undo_all",
]


def sections() -> dict[str, type[Section]]:
    """The option sections of all transforms, by section name."""
    return {transform.section: transform.Config for transform in map(TRANSFORMS.get, TRANSFORMS)}


def build_transforms(
    names: Sequence[str], options: Mapping[str, Section], corpus: CorpusConfig, context: TransformContext
) -> list[Transform]:
    """The transforms of a corpus, in order, with exactly one tokeniser among them.

    Where the list has none, the checkpoint's tokeniser (or splitting at spaces) is put before the first transform that
    counts tokens, or at the end.

    Args:
        names: As the user lists them.
        options: Section of each transform by `Transform.section`; a missing one means its defaults.
        corpus: Its own options; `CorpusConfig()` at inference.
        context: What else they may know.

    Raises:
        ConfigError: An unknown name, two tokenisers, a transform of text behind the tokeniser, one of tokens before it,
            or wrong options.
    """
    classes = [transform_class(name) for name in names]
    tokenizers = [index for index, transform in enumerate(classes) if transform.tokenizes]
    if len(tokenizers) > 1:
        listed = " and ".join(names[index] for index in tokenizers)
        raise ConfigError(f"`transforms` must list at most one tokeniser, but lists {listed}.")
    counting = next(
        (index for index, each in enumerate(classes) if each.counts_tokens or each.needs_tokens), len(classes)
    )
    position = tokenizers[0] if tokenizers else counting
    late = next((transform.name for transform in classes[position + 1 :] if transform.needs_text), None)
    if late:
        raise ConfigError(f"Transform '{late}' must stand before the tokeniser in `transforms`, but stands behind it.")
    early = next((transform.name for transform in classes[:position] if transform.needs_tokens), None)
    if early:
        raise ConfigError(f"Transform '{early}' must stand behind the tokeniser in `transforms`, but stands before it.")
    configs = [options.get(transform.section, transform.Config()) for transform in classes]
    built = [each.build(config, corpus, context) for each, config in zip(classes, configs, strict=True)]
    if not tokenizers:
        built.insert(position, default_tokenize(context))
    return built


def added_tokens(
    corpora: Mapping[str, CorpusConfig], data: DataConfig, options: Mapping[str, Section], *, in_text: bool = False
) -> list[str]:
    """Tokens that the transforms of these corpora put into examples, each once; `in_text`: only those put into text."""
    found: dict[str, None] = {}
    for corpus in corpora.values():
        for name in data.transforms if corpus.transforms is None else corpus.transforms:
            transform = transform_class(name)
            config = options.get(transform.section, transform.Config())
            if transform.inserts_text or not in_text:
                found.update(dict.fromkeys(transform.added_tokens(config, corpus)))
    return list(found)


def undo_all(transforms: Sequence[Transform], tokens: list[str]) -> str:
    """The text that a model's output stands for: every transform reversed, the last one first."""
    output: str | list[str] = tokens
    for transform in reversed(transforms):
        output = transform.undo(output)
    return output if isinstance(output, str) else " ".join(output)
