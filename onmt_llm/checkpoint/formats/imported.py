"""What a reader of another format hands to `convert`: where the tensors are, how they map, what goes beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from onmt_llm.checkpoint.formats.rules import Rule, TensorSource
from onmt_llm.config.checkpoint import AdapterSpec, SpecialTokens, TokenizerSpec
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError


class TypedSource(TensorSource, Protocol):
    """A source that knows the type of a tensor without reading it."""

    def dtype(self, name: str) -> torch.dtype: ...


def check_sizes(model: ModelConfig, source: TensorSource, path: Path, *, rows: bool = True) -> None:
    """Refuse an architecture that the tensors cannot be of, before anything of its size is made.

    Args:
        model: What the model's configuration says.
        source: The tensors that are there.
        path: Where both are.
        rows: Its embedding is among them.

    Raises:
        CheckpointError: It has more layers than there are tensors, or a larger vocabulary than any of them.
    """
    names = source.names()
    if model.encoder_layers + model.decoder_layers > len(names):
        raise CheckpointError(
            f"The configuration of {path} must fit its weights, but says encoder_layers {model.encoder_layers} and "
            f"decoder_layers {model.decoder_layers}, where there are {len(names)} tensors."
        )
    largest = max((max(source.shape(name), default=1) for name in names), default=0)
    if rows and model.vocab_size > largest:
        raise CheckpointError(
            f"The configuration of {path} must fit its weights, but says vocab_size {model.vocab_size}, where no "
            f"tensor is longer than {largest}."
        )


@dataclass
class ImportedTokenizer:
    """Vocabulary, tokeniser and template of an imported model.

    Attributes:
        tokens: The vocabulary in the order of ids.
        specials: Tokens with a role.
        spec: How text is split; its file is in `files` or `blobs`.
        template: Built-in name or `chat_template.jinja`, None without one.
        stop_tokens: Tokens, besides eos, that end an answer.
        files: Files to copy, by their name in the checkpoint.
        blobs: Files to write, by their name in the checkpoint.
        src_tokens: The source side's vocabulary where it differs.
        feature_tokens: Vocabularies of the source features.
        feature_defaults: Their values where a word comes without any, `value￨value`.
    """

    tokens: list[str]
    specials: SpecialTokens = field(default_factory=SpecialTokens)
    spec: TokenizerSpec = field(default_factory=TokenizerSpec)
    template: str | None = None
    stop_tokens: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    src_tokens: list[str] | None = None
    feature_tokens: list[list[str]] = field(default_factory=list)
    feature_defaults: str | None = None


@dataclass
class ImportedModel:
    """A imported model, opened but not read.

    Attributes:
        origin: Says for people what it is, e.g. "Hugging Face llama, llama-7b".
        model: Its architecture; `dtype` and `vocab_size` are settled by `convert`.
        source: Its tensors.
        rules: From its tensors to ours, `{i}` filled in.
        ignore: Patterns of its tensors that carry nothing.
        tokenizer: Its vocabulary, tokeniser, template.
        expected: Shapes of our tensors where they are not those of the whole model: those of an adapter.
        adapter: Settings of an adapter.
        alignment: What `CheckpointConfig` says of alignments, where the model was trained for them.
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
