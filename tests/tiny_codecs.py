"""Codecs, pipeline specifications and transform contexts for the tests of the data package."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onmt_llm.config.checkpoint import CheckpointConfig, SpecialTokens
from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.config.model import ModelConfig, Task
from onmt_llm.config.section import Section
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.transforms.transform import TransformContext
from onmt_llm.text.codec import Codec
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.message import Message, Template
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from onmt_llm.text.vocab import Vocab


def make_codec(
    task: Task,
    vocab: Vocab,
    *,
    tokenizer: Tokenizer | None = None,
    src_tokenizer: Tokenizer | None = None,
    template: Template | None = None,
    feature_vocabs: Sequence[Vocab] = (),
    src_vocab: Vocab | None = None,
    add_bos: bool = True,
) -> Codec:
    """The codec of a model that splits text at spaces, unless it has a tokeniser."""
    specials = vocab.specials.model_copy(update={"add_bos": add_bos})
    config = CheckpointConfig(model=ModelConfig(encoder_layers=0 if task == "lm" else 1), specials=specials)
    return Codec(
        config,
        vocab,
        tokenizer or WhitespaceTokenizer(),
        template=template,
        src_tokenizer=src_tokenizer,
        src_vocab=src_vocab,
        feature_vocabs=feature_vocabs,
    )


def make_spec(
    corpora: Mapping[str, CorpusConfig],
    codec: Codec,
    data: DataConfig | None = None,
    *,
    options: Mapping[str, Section] | None = None,
    **more: Any,
) -> PipelineSpec:
    """A pipeline specification, with sections of transforms."""
    data = (data or DataConfig()).model_copy(update={"transform_options": dict(options or {})})
    return PipelineSpec(corpora, data, codec, **more)


@dataclass(frozen=True)
class Layout:
    """A template that nothing is rendered with."""

    control_tokens: frozenset[str]
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> list[Segment]:
        raise NotImplementedError


def make_context(
    task: Task = "lm",
    *,
    vocab: Vocab | None = None,
    tokenizer: Tokenizer | None = None,
    src_tokenizer: Tokenizer | None = None,
    control_tokens: Collection[str] = (),
    bos: str | None = None,
    add_bos: bool = True,
    **more: Any,
) -> TransformContext:
    """What a transform is given, for a model without special tokens but those that are named."""
    vocab = vocab or Vocab(["<unk>"], SpecialTokens(bos=bos, eos=None))
    codec = make_codec(task, vocab, tokenizer=tokenizer, src_tokenizer=src_tokenizer, add_bos=add_bos)
    template = Layout(frozenset(control_tokens)) if control_tokens else None
    return TransformContext(codec, template=template, tokenizer=tokenizer, src_tokenizer=src_tokenizer, **more)
