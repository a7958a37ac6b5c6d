"""`ImportedModel`: what the reader of another format gives to `convert`: tensors, rules, configuration, tokeniser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from onmt_llm.checkpoint.files.blocks import tensor_bytes
from onmt_llm.checkpoint.formats.rules import Rule, TensorSource
from onmt_llm.checksums import fast_digest
from onmt_llm.config.checkpoint import (
    AdapterSpec,
    LanguageTokens,
    SamplingDefaults,
    SequenceTokens,
    SpecialTokens,
    TokenizerSpec,
)
from onmt_llm.config.model import ModelConfig

NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types of weights that are what the model computes with; others are codes of a quantisation."""


class TypedSource(TensorSource, Protocol):
    """A source that knows a tensor's type without reading it."""

    def dtype(self, name: str) -> torch.dtype: ...


def are_copies(source: TypedSource, first: str, *others: str) -> bool:
    """Whether tensors have the same type, shape and content; one of them is in memory at a time."""
    return len({_identity(source.tensor(name)) for name in (first, *others)}) == 1


def _identity(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, str]:
    return tensor.dtype, tensor.shape, fast_digest(tensor_bytes(tensor))


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of another toolkit's model.

    Attributes:
        tokenizer_model: Tokeniser file, if it is not beside the model; `none` = convert the weights alone.
        src_tokenizer_model: That of the source side, if it is another.
        vocab_file: Vocabulary file, if the tokeniser does not define the vocabulary.
        ignore_unknown: Log keys of its configuration that are not known, and continue.
    """

    tokenizer_model: Path | None = None
    src_tokenizer_model: Path | None = None
    vocab_file: Path | None = None
    ignore_unknown: bool = False


NOTHING_ASKED = ImportOptions()


@dataclass
class ImportedTokenizer:
    """Vocabulary, tokeniser, special tokens and chat template of an imported model.

    Attributes:
        tokens: The vocabulary, in the order of ids.
        specials: Special tokens by role.
        spec: The tokeniser; its file is in `files` or `blobs`.
        src_spec: The tokeniser of the source side, if it differs.
        template: Built-in name or `chat_template.jinja`; None = no template.
        stop_tokens: Tokens besides eos that end an answer.
        banned_tokens: Tokens that are never generated.
        sequences: Tokens around the text of an encoder-decoder.
        languages: Languages of a multilingual model.
        files: Files to copy, by name in the checkpoint.
        blobs: Contents of files to write, by name in the checkpoint.
        src_tokens: The source vocabulary, if it differs.
        feature_tokens: Vocabularies of the source features.
        feature_defaults: Feature values of words without any, `value￨value`.
    """

    tokens: list[str]
    specials: SpecialTokens = field(default_factory=SpecialTokens)
    spec: TokenizerSpec = field(default_factory=TokenizerSpec)
    src_spec: TokenizerSpec | None = None
    template: str | None = None
    stop_tokens: list[str] = field(default_factory=list)
    banned_tokens: list[str] = field(default_factory=list)
    sequences: SequenceTokens = field(default_factory=SequenceTokens)
    languages: LanguageTokens = field(default_factory=LanguageTokens)
    files: dict[str, Path] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    src_tokens: list[str] | None = None
    feature_tokens: list[list[str]] = field(default_factory=list)
    feature_defaults: str | None = None


@dataclass
class ImportedModel:
    """Another toolkit's model, opened but not read.

    Attributes:
        origin: A description for people, e.g. "Hugging Face llama, llama-7b".
        model: Its architecture; `convert` sets `dtype`.
        source: Its tensors.
        rules: From its tensors to ours, with `{i}` filled in.
        ignore: Patterns of its tensors to skip.
        tokenizer: Its vocabulary, tokeniser and template.
        expected: Shapes of our tensors if it is an adapter; None = those of the whole model.
        adapter: Settings of an adapter.
        alignment: Alignment settings of `CheckpointConfig`, if the model was trained with alignments.
        sampling: How its authors sample.
    """

    origin: str
    model: ModelConfig
    source: TypedSource
    rules: Sequence[Rule]
    ignore: Sequence[str]
    tokenizer: ImportedTokenizer
    expected: Mapping[str, tuple[int, ...]] | None = None
    adapter: AdapterSpec | None = None
    alignment: Mapping[str, Any] = field(default_factory=dict)
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
