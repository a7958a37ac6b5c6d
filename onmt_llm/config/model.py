"""The architecture of a model: the only configuration that travels into `nn` and into a checkpoint's tensors.

Values are words, never sentinels. OpenNMT-py's names and sentinels (`max_relative_positions: -1` ...) are translated in
`aliases.py` and nowhere else.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from onmt_llm.config.section import DERIVED, Section

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
Norm = Literal["layernorm", "rmsnorm"]
Position = Literal["rotary", "alibi", "sinusoidal", "learned", "none"]
Dtype = Literal["fp32", "bf16", "fp16"]


class RopeConfig(Section):
    """Rotary position embedding (Su et al. 2021), always in the half-split layout."""

    theta: float = 10000.0
    """Base of the geometric progression of wavelengths."""
    rotary_dim: int | None = None
    """Dimensions of a head that rotate; null = all of them."""
    scaling: Literal["none", "linear", "llama3"] = "none"
    """How positions beyond the trained context are compressed."""
    factor: float = 1.0
    """Scaling factor for `linear` and `llama3`."""
    low_freq_factor: float = 1.0
    """`llama3`: wavelengths longer than original_max_position / this are divided by `factor`."""
    high_freq_factor: float = 4.0
    """`llama3`: wavelengths shorter than original_max_position / this are left alone."""
    original_max_position: int = 8192
    """`llama3`: context length the model was first trained with."""


class ModelConfig(Section):
    """Shape of one `Transformer`: encoder-decoder, decoder-only or encoder-only."""

    encoder_layers: int = 0
    """Blocks in the encoder; 0 = no encoder (a language model)."""
    decoder_layers: int = 6
    """Blocks in the decoder; 0 = no decoder."""
    vocab_size: int = 0
    """Rows of the decoder's embedding and of the output layer; 0 = taken from the vocabulary."""
    src_vocab_size: int | None = Field(None, json_schema_extra=DERIVED)
    """Rows of the encoder's embedding, from the vocabulary; null = `vocab_size`."""
    hidden_size: int = 512
    """Width of the residual stream (D)."""
    heads: int = 8
    """Query heads (N)."""
    kv_heads: int | None = None
    """Key/value heads; null = `heads`; 1 = multi-query attention."""
    head_dim: int | None = None
    """Width of one head (H); null = hidden_size / heads."""
    ffn_size: int = 2048
    """Inner width of the feed-forward layer."""
    ffn_gated: bool = False
    """down(act(gate(x)) * up(x)) instead of down(act(up(x)))."""
    activation: Activation = "relu"
    """Feed-forward activation; `gelu_tanh` is the tanh approximation."""
    norm: Norm = "layernorm"
    """Normalisation layer."""
    norm_position: Literal["pre", "post"] = "pre"
    """Normalise before each sub-layer (with one more norm after the stack) or after each residual sum."""
    norm_eps: float = 1e-6
    """Epsilon of the norms."""
    norm_bias: bool = True
    """LayerNorm has a bias (RMSNorm never has one)."""
    position: Position = "sinusoidal"
    """How positions are encoded."""
    max_position: int = 5000
    """Rows of a `learned` position table, and the context length that the model was trained for."""
    rope: RopeConfig = RopeConfig()
    """Settings of `position: rotary`."""
    alibi_scaled: bool = False
    """ALiBi as Falcon applies it: the bias is added before the scores are scaled."""
    parallel_residual: bool = False
    """Attention and feed-forward read the same input and are added together (GPT-J, Falcon)."""
    shared_norm: bool = False
    """With `parallel_residual`: one norm feeds both sub-layers."""
    qk_norm: bool = False
    """RMSNorm over each head of q and k before the positions are applied."""
    attn_bias: bool = False
    """Bias on q, k and v projections."""
    attn_out_bias: bool = False
    """Bias on the output projection of attention."""
    ffn_bias: bool = False
    """Bias on the feed-forward projections."""
    lm_head_bias: bool = False
    """Bias on the output layer."""
    sliding_window: int | None = None
    """Each token attends to itself and this many - 1 tokens before it; null = all."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(hidden_size)."""
    tie_embeddings: bool = False
    """The output layer uses the decoder's embedding matrix."""
    share_embeddings: bool = False
    """Encoder and decoder use one embedding matrix."""
    dtype: Dtype = "fp32"
    """Type in which the weights are stored."""

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def size_per_head(self) -> int:
        return self.head_dim or self.hidden_size // self.heads

    @property
    def rotary_size(self) -> int:
        return self.rope.rotary_dim or self.size_per_head

    @property
    def encoder_vocab_size(self) -> int:
        return self.src_vocab_size or self.vocab_size

    @property
    def is_decoder_only(self) -> bool:
        return self.encoder_layers == 0

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.head_dim is None and self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size must be a multiple of heads, but is {self.hidden_size} with heads {self.heads}"
            )
        if self.heads % self.num_kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads, but is {self.heads} with kv_heads {self.num_kv_heads}"
            )
        if self.encoder_layers + self.decoder_layers < 1:
            raise ValueError("encoder_layers + decoder_layers must be >= 1, but both are 0")
        if self.shared_norm and not self.parallel_residual:
            raise ValueError("shared_norm must go with parallel_residual, which is false")
        if self.position == "rotary" and self.rotary_size % 2:
            raise ValueError(f"rotary_dim must be even, but is {self.rotary_size}")
        return self
