"""What `config.yaml` of a checkpoint directory (and of a CTranslate2 release) says.

Everything that training and every engine must agree on stands here once: the architecture, the tokeniser, the special
tokens, the chat template and where an answer stops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from onmt_llm.config.loading.yaml_file import MAX_BYTES, load_plain
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.numbers import Count, Fraction, FractionBelowOne, HeadsOrAll, LayerIndex, Positive, Width
from onmt_llm.config.section import Section
from onmt_llm.errors import CheckpointError

FORMAT_VERSION = 2
"""2: a manifest stands beside it."""
CONFIG_FILE = "config.yaml"

TokenizerKind = Literal["sentencepiece", "bpe", "onmt_tokenize", "huggingface", "whitespace"]


class TokenizerSpec(Section):
    """One tokeniser, its model stored beside this file."""

    kind: TokenizerKind = "whitespace"
    """Library that splits text into the vocabulary's pieces."""
    file: str | None = None
    """Model file, relative to the checkpoint directory."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the library, e.g. pyonmttok's `mode`, `joiner_annotate`."""


class SpecialTokens(Section):
    """Tokens with a role, by their text in the vocabulary; null = the model has none."""

    unk: str | None = "<unk>"
    bos: str | None = "<s>"
    eos: str | None = "</s>"
    pad: str | None = None
    add_bos: bool = True
    """Inputs of a language model begin with `bos`."""


class AdapterSpec(Section):
    """LoRA weights on a base that is stored elsewhere."""

    rank: Width
    alpha: Positive
    dropout: FractionBelowOne = 0.0
    layers: list[str]
    """Names as `nn.wrap.replace` understands them, in the ecosystem's spelling (`q_proj`)."""
    embedding: bool = False
    """The embedding matrices carry LoRA too."""
    rslora: bool = False
    """The adapters are scaled by alpha / sqrt(rank)."""
    dora: bool = False
    """The length of each row is trained apart from its direction."""
    rank_pattern: dict[str, Width] = Field(default_factory=dict)
    """Rank of single layers, by name."""
    alpha_pattern: dict[str, Positive] = Field(default_factory=dict)
    """Alpha of single layers, by name."""
    init: Literal["default", "pissa", "loftq"] = "default"
    """What the adapters began with."""
    init_iter: Count | None = None
    """Steps of that initialisation."""
    base: str
    """Path of the base checkpoint when the adapter was trained."""
    base_fingerprint: str
    """`Checkpoint.fingerprint` of the base; merging into anything else is refused."""
    quant_layers: list[str] = Field(default_factory=list)
    """Layers that were quantised while the adapter was trained."""
    quant_type: str = ""


class ExpansionSpec(Section):
    """New blocks (`nn.expand`): `concat` = twins, here, of blocks of a base that is stored elsewhere; `stack` = blocks
    between those of a base, all of them here."""

    type: Literal["concat", "stack"]
    blocks: list[str]
    """Paths, in the base and in its order, of the blocks that have a twin, or one behind them."""
    lerp: Fraction = 0.5
    """Weight of the twins."""
    base: str = ""
    """Path of the base checkpoint when the twins were trained."""
    base_fingerprint: str = ""
    """`Checkpoint.fingerprint` of the base; merging into anything else is refused."""
    quant_layers: list[str] = Field(default_factory=list)
    """Layers of the base that were quantised while the twins were trained."""
    quant_type: str = ""


class CheckpointConfig(Section):
    """Content of `config.yaml`."""

    format_version: Count = FORMAT_VERSION
    model: ModelConfig
    alignment_layer: LayerIndex = -1
    """Decoder layer whose attention to the source is taken for an alignment; negative = from the last one, -1."""
    alignment_heads: HeadsOrAll = 1
    """First heads of that layer that are averaged; 0 = all."""
    full_context_alignment: bool = False
    """That attention is computed with self-attention to the whole target, tokens to come included."""
    src_feats_defaults: str | None = None
    """Features of source words that come without any, `value￨value`, for a model with `src_features`."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    src_tokenizer: TokenizerSpec | None = None
    """The source side's tokeniser, where it differs from `tokenizer`."""
    specials: SpecialTokens = SpecialTokens()
    template: str | None = None
    """Chat template: a built-in name, or `chat_template.jinja` beside this file."""
    stop: list[str] = Field(default_factory=list)
    """Texts at which an answer ends."""
    stop_tokens: list[str] = Field(default_factory=list)
    """Tokens, besides `eos`, at which an answer ends."""
    adapter: AdapterSpec | None = None
    expansion: ExpansionSpec | None = None
    source: str = ""
    """Where the weights came from, for people."""

    @property
    def addition(self) -> AdapterSpec | ExpansionSpec | None:
        """What was trained beside the weights of a base."""
        return self.adapter or self.expansion

    @property
    def noun(self) -> str:
        """What that is, in messages."""
        return "block expansion" if self.adapter is None else "LoRA adapter"


def read_config(directory: Path) -> CheckpointConfig:
    """Read and validate the `config.yaml` of a checkpoint or release.

    Raises:
        CheckpointError: It is missing, not YAML, of a newer format, or wrong; all that is wrong is in one message.
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
        raise CheckpointError(f"{file} must be the configuration of a checkpoint, but is not: {problems}.") from error


def config_text(config: CheckpointConfig) -> str:
    """The content of `config.yaml`, in the present version of the format."""
    content = {**config.model_dump(mode="json"), "format_version": FORMAT_VERSION}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
