"""`CheckpointConfig`, the contents of `config.yaml` in a checkpoint directory (and in a CTranslate2 release).

It has everything that training and all engines must agree on: architecture, tokeniser, special tokens, chat template
and stop strings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from onmt_llm.config.loading.yaml_file import MAX_BYTES, load_plain
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.numbers import (
    Count,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    HeadsOrAll,
    LayerIndex,
    Positive,
    Width,
)
from onmt_llm.config.section import Section
from onmt_llm.errors import CheckpointError

FORMAT_VERSION = 2
"""2: the directory has a manifest."""
CONFIG_FILE = "config.yaml"
CARD_FILE = "README.md"
"""The model card, which belongs to one export or release and is never copied to another model."""
_OWN_FILES = re.compile(
    r"\..*|config\.yaml|README\.md|(manifest|fingerprint)\.json|adapter\.safetensors|model.*\.safetensors(\.index\.json)?"
)

TokenizerKind = Literal["sentencepiece", "bpe", "onmt_tokenize", "huggingface", "whitespace", "none"]


class TokenizerSpec(Section):
    """A tokeniser; its model file is stored beside this file."""

    kind: TokenizerKind = "whitespace"
    """Library that splits text into tokens; `none`: the model was converted without its tokeniser."""
    file: str | None = None
    """Model file, relative to the checkpoint directory."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the library, e.g. pyonmttok's `mode` and `joiner_annotate`."""


class SpecialTokens(Section):
    """Special tokens, by their text in the vocabulary; null = the model has none."""

    unk: str | None = "<unk>"
    bos: str | None = "<s>"
    eos: str | None = "</s>"
    pad: str | None = None
    add_bos: bool = True
    """Prepend `bos` to the input of a language model."""


class SequenceTokens(Section):
    """Tokens that an encoder-decoder's sequences have besides those of the text and the end token of the target.

    `{src_lang}` and `{tgt_lang}` stand for the tokens of the languages of a text and of its translation.
    """

    src_prefix: list[str] = Field(default_factory=list)
    """Tokens before those of a source."""
    src_suffix: list[str] = Field(default_factory=list)
    """Tokens after those of a source."""
    decoder_start: list[str] = Field(default_factory=list)
    """Tokens that every target begins with, which the decoder is given; empty = `bos`."""


class LanguageTokens(Section):
    """Languages of a multilingual model."""

    tokens: dict[str, str] = Field(default_factory=dict)
    """The token of each language, by its code."""
    src: str | None = None
    """Code of the source language, unless another is requested; null = it must be."""
    tgt: str | None = None
    """Code of the target language, unless another is requested; null = it must be."""

    @property
    def example(self) -> tuple[str, str]:
        """A source and a target language to try the model with; "" = it has none."""
        codes = list(self.tokens) or [""]
        return self.src or codes[0], self.tgt or codes[-1]


class SamplingDefaults(Section):
    """How the authors of a model sample its answers, by the names of transformers: exports write it for other programs,
    and the server goes by it where its options say nothing. In other commands the options decide."""

    do_sample: bool = False
    """Sample; otherwise always the most likely token."""
    temperature: Positive | None = None
    """Sampling temperature."""
    top_k: CountOrZero | None = None
    """Sample from the k most likely tokens; 0 = all."""
    top_p: Fraction | None = None
    """Sample from the most likely tokens whose probabilities add up to this."""
    repetition_penalty: Positive | None = None
    """Penalty of tokens already present (Keskar et al. 2019)."""


class AdapterSpec(Section):
    """LoRA weights for a base model that is stored elsewhere."""

    rank: Width
    alpha: Positive
    dropout: FractionBelowOne = 0.0
    layers: list[str]
    """Layer names for `nn.wrap.replace`, as in Hugging Face models (`q_proj`)."""
    embedding: bool = False
    """The embedding matrices have adapters too."""
    rslora: bool = False
    """Adapters are scaled by alpha / sqrt(rank)."""
    dora: bool = False
    """DoRA: the magnitude of each weight row is trained separately from its direction."""
    rank_pattern: dict[str, Width] = Field(default_factory=dict)
    """Ranks of individual layers, by name."""
    alpha_pattern: dict[str, Positive] = Field(default_factory=dict)
    """Alphas of individual layers, by name."""
    init: Literal["default", "pissa", "loftq"] = "default"
    """Initialisation of the adapters."""
    init_iter: Count | None = None
    """Iterations of that initialisation."""
    base: str
    """Path of the base checkpoint when the adapter was trained."""
    base_fingerprint: str
    """`Checkpoint.fingerprint` of the base; merging into any other model is refused."""
    quant_layers: list[str] = Field(default_factory=list)
    """Layers that were quantised while the adapter was trained."""
    quant_type: str = ""


class ExpansionSpec(Section):
    """Block expansion (`nn.block_expansion`). `concat`: this checkpoint has copies of some blocks of a base that is
    stored elsewhere. `stack`: this checkpoint is a complete model, with new blocks between those of the base."""

    type: Literal["concat", "stack"]
    blocks: list[str]
    """Paths of the expanded blocks in the base, in its order."""
    lerp: Fraction = 0.5
    """Weight of the copies."""
    base: str = ""
    """Path of the base checkpoint when the copies were trained."""
    base_fingerprint: str = ""
    """`Checkpoint.fingerprint` of the base; merging into any other model is refused."""
    quant_layers: list[str] = Field(default_factory=list)
    """Layers of the base that were quantised while the copies were trained."""
    quant_type: str = ""


class CheckpointConfig(Section):
    """Contents of `config.yaml`."""

    format_version: Count = FORMAT_VERSION
    model: ModelConfig
    alignment_layer: LayerIndex = -1
    """Decoder layer whose cross-attention is used as word alignment; negative = counted from the last, -1."""
    alignment_heads: HeadsOrAll = 1
    """Number of heads of that layer to average, from the first; 0 = all."""
    full_context_alignment: bool = False
    """Compute that attention with self-attention to the whole target, including future tokens."""
    src_feats_defaults: str | None = None
    """Features for the words of lines without features, `value￨value`, for a model with `src_features`."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    src_tokenizer: TokenizerSpec | None = None
    """Tokeniser of the source side, if it differs from `tokenizer`."""
    specials: SpecialTokens = SpecialTokens()
    sequences: SequenceTokens = SequenceTokens()
    languages: LanguageTokens = LanguageTokens()
    template: str | None = None
    """Chat template: the name of a built-in one, or `chat_template.jinja` beside this file."""
    stop: list[str] = Field(default_factory=list)
    """Stop strings."""
    stop_tokens: list[str] = Field(default_factory=list)
    """Stop tokens in addition to `eos`."""
    banned_tokens: list[str] = Field(default_factory=list)
    """Tokens that are never generated."""
    sampling: SamplingDefaults = SamplingDefaults()
    adapter: AdapterSpec | None = None
    expansion: ExpansionSpec | None = None
    source: str = ""
    """Origin of the weights, for people; an export to Hugging Face prefers the family that it names first."""

    @property
    def addition(self) -> AdapterSpec | ExpansionSpec | None:
        """The adapter or block expansion, if this is one."""
        return self.adapter or self.expansion

    @property
    def noun(self) -> str:
        """Name of `addition` in messages."""
        return "block expansion" if self.adapter is None else "LoRA adapter"


def read_config(directory: Path) -> CheckpointConfig:
    """Read and validate the `config.yaml` of a checkpoint or release.

    Raises:
        CheckpointError: The file is missing, not YAML, of a newer format, or invalid; the message lists all problems.
    """
    file = directory / CONFIG_FILE
    try:
        if file.exists() and (not file.is_file() or file.stat().st_size > MAX_BYTES):
            raise CheckpointError(f"{file} must be a file of at most {MAX_BYTES >> 20} MiB, but is not.")
        content = load_plain(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"A checkpoint must have a {CONFIG_FILE}, but {file}: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} must be YAML, but is not: {error}.") from error
    version = content.get("format_version", FORMAT_VERSION) if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{file} must be a mapping with a whole number as format_version, but is not.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} must have a format_version of at most {FORMAT_VERSION}, but has {version}.", hint="update onmt_llm"
        )
    try:
        return CheckpointConfig.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{file} must be a valid checkpoint configuration, but is not: {problems}.") from error


def config_text(config: CheckpointConfig) -> str:
    """The contents of `config.yaml`, in the current version of the format."""
    content = {**config.model_dump(mode="json"), "format_version": FORMAT_VERSION}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def is_own_file(name: str) -> bool:
    """Whether a checkpoint keeps weights, configuration or its model card under this name."""
    return _OWN_FILES.fullmatch(name) is not None
