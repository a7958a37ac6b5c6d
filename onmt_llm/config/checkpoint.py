"""What `config.yaml` of a checkpoint directory (and of a CTranslate2 release) says.

Everything that training and every engine must agree on stands here once: the architecture, the tokeniser, the special
tokens, the chat template and where an answer stops.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from onmt_llm.config.model import ModelConfig
from onmt_llm.config.section import Section

FORMAT_VERSION = 1

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

    rank: int
    alpha: float
    dropout: float = 0.0
    layers: list[str]
    """Names as `nn.wrap.replace` understands them, in the ecosystem's spelling (`q_proj`)."""
    embedding: bool = False
    """The embedding matrices carry LoRA too."""
    base: str
    """Path of the base checkpoint when the adapter was trained."""
    base_fingerprint: str
    """`Checkpoint.fingerprint` of the base; merging into anything else is refused."""
    quant_layers: list[str] = Field(default_factory=list)
    """Layers that were quantised while the adapter was trained."""
    quant_type: str = ""


class CheckpointConfig(Section):
    """Content of `config.yaml`."""

    format_version: int = FORMAT_VERSION
    model: ModelConfig
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
    source: str = ""
    """Where the weights came from, for people."""
