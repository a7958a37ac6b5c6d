"""`ModelConfig`, the architecture of a model: the only options that `nn` knows, stored in every checkpoint.

Values are words, never sentinels: `config.compat` translates OpenNMT-py's (`max_relative_positions: -1` ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from onmt_llm.config.latent import LatentConfig
from onmt_llm.config.mixture import MoEConfig
from onmt_llm.config.numbers import (
    Count,
    Heads,
    LayerCount,
    Positive,
    VocabularySize,
    Width,
)
from onmt_llm.config.rope import RopeConfig
from onmt_llm.config.section import DERIVED, Section

Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "silu", "clamped_swiglu"]
Norm = Literal["layernorm", "rmsnorm"]
NormPosition = Literal["pre", "post", "both", "output"]
LayerType = Literal["full_attention", "sliding_attention"]
PositionEncoding = Literal["rotary", "alibi", "sinusoidal", "shaw", "t5", "learned", "none"]
SinusoidKind = Literal["standard", "concat", "fairseq"]
Dtype = Literal["fp32", "bf16", "fp16"]
Task = Literal["lm", "seq2seq"]
"""`lm`: decoder-only; `seq2seq`: encoder-decoder."""

TASK_NOUNS: Mapping[Task, str] = {"lm": "a language model", "seq2seq": "an encoder-decoder"}


class FeatureConfig(Section):
    """A feature of the source tokens (Sennrich and Haddow 2016), such as part of speech, lemma or case."""

    vocab_size: VocabularySize
    """Number of values: rows of its embedding."""
    size: Width
    """Width of its embedding."""


class ModelConfig(Section):
    """Architecture of the Transformer: encoder-decoder, decoder-only or encoder-only."""

    encoder_layers: LayerCount = 0
    """Number of encoder blocks; 0 = no encoder (language model). If not set, a new translation model (`model_task`) has
    as many as `decoder_layers`."""
    decoder_layers: LayerCount = 6
    """Number of decoder blocks; 0 = no decoder."""
    vocab_size: VocabularySize = 0
    """Rows of the decoder embedding and the output layer; 0 = the size of the vocabulary."""
    src_vocab_size: VocabularySize | None = Field(None, json_schema_extra=DERIVED)
    """Rows of the encoder embedding, from the vocabulary; null = `vocab_size`."""
    hidden_size: Width = 512
    """Width of the residual stream (D)."""
    heads: Heads = 8
    """Number of query heads (N)."""
    kv_heads: Heads | None = None
    """Number of key/value heads; null = `heads`, 1 = multi-query attention."""
    head_dim: Width | None = None
    """Width of a head (H); null = hidden_size / heads."""
    latent: LatentConfig = LatentConfig()
    """Latent attention instead of ordinary self-attention."""
    ffn_size: Width = 2048
    """Inner width of the feed-forward layer."""
    ffn_gated: bool = False
    """Gated feed-forward layer: down(act(gate(x)) * up(x)) instead of down(act(up(x)))."""
    moe: MoEConfig = MoEConfig()
    """Mixture of experts instead of feed-forward layers."""
    activation: Activation = "relu"
    """Activation of the feed-forward layer; `relu2` is the square of ReLU, `gelu_tanh` the tanh approximation of GELU.
    `clamped_swiglu` (gpt-oss), which needs `ffn_gated`, limits gate and up to 7 and computes
    gate * sigmoid(1.702 * gate) * (up + 1)."""
    norm: Norm = "layernorm"
    """Type of normalisation."""
    norm_position: NormPosition = "pre"
    """Normalise the input of each sub-layer (`pre`), its output (`output`; OLMo 2), or both (`both`; Gemma 2 and 3),
    with a final norm after the stack; or the residual stream after each addition (`post`, without a final norm)."""
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """Epsilon of the norms."""
    norm_bias: bool = True
    """LayerNorm has a bias (RMSNorm never does)."""
    position: PositionEncoding = "sinusoidal"
    """Position encoding."""
    max_position: Count = 5000
    """Number of positions of a `learned` table, and the context length that the model was trained for."""
    rope: RopeConfig = RopeConfig()
    """Settings of `position: rotary`."""
    rope_layers: list[bool] = []
    """`position: rotary`: whether each decoder layer uses it (SmolLM3, Cohere 2); empty = all do."""
    sinusoid: SinusoidKind = "standard"
    """`position: sinusoidal`: wavelengths up to 10000 * 2 pi. `standard` stops one wavelength below that (Vaswani et
    al. 2017; OpenNMT-py's SinusoidalInterleaved), `concat` includes it (tensor2tensor; OpenNMT-py's
    SinusoidalConcat), `fairseq` includes it and counts positions from 2 (M2M100, NLLB)."""
    relative_positions: Annotated[int, Field(ge=0, le=2**16)] = 0
    """`position: shaw`: maximum relative distance; longer distances are clipped to it (Shaw et al. 2018)."""
    relative_buckets: Width = 32
    """`position: t5`: number of distance buckets, each with a bias per head (Raffel et al. 2020)."""
    relative_max_distance: Count = 128
    """`position: t5`: distances of at least this share the last bucket."""
    relative_shared: bool = False
    """`position: t5`: all layers of a stack share one bias table, as in T5."""
    alibi_scaled: bool = False
    """`position: alibi` as in Falcon: the bias is added before the attention scores are scaled."""
    parallel_residual: bool = False
    """Attention and feed-forward layer read the same input, and their outputs are added (GPT-J, Falcon)."""
    shared_norm: bool = False
    """With `parallel_residual`: one norm for both sub-layers."""
    qk_norm: bool = False
    """Normalise q and k before position encoding."""
    qk_norm_type: Norm = "rmsnorm"
    """`qk_norm`: its type; `layernorm` has no bias, and weights of its own for each head (Cohere)."""
    qk_norm_over: Literal["head", "all_heads"] = "head"
    """`qk_norm`: normalise each head by itself, or all heads of a token together (OLMo 2, OLMoE)."""
    scale_attention: bool = True
    """Divide attention scores by sqrt(head_dim); T5 does not."""
    attention_scale: Positive | None = None
    """Multiply attention scores by this number instead (Gemma 2 and 3, Granite)."""
    attention_softcap: Positive | None = None
    """Soft cap c of attention scores: c * tanh(score / c), which no fused kernel computes (Gemma 2); null = none."""
    attention_sinks: bool = False
    """A learned score for each head joins the softmax of self-attention without a value of its own, so that a token
    may attend to nothing (gpt-oss)."""
    attn_bias: bool = False
    """Bias in the q, k and v projections."""
    attn_out_bias: bool = False
    """Bias in the output projection of attention."""
    ffn_bias: bool = False
    """Bias in the feed-forward projections."""
    lm_head_bias: bool = False
    """Bias in the output layer. If not set, a new translation model has one."""
    sliding_window: Count | None = None
    """Sliding-window attention in the decoder: each token attends to itself and to this many - 1 tokens before it; null
    = all."""
    layer_types: list[LayerType] = []
    """Attention of each decoder layer: only within `sliding_window`, or to all earlier tokens; empty = within the
    window, if there is one."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(hidden_size). If not set, a new model with sinusoidal positions does."""
    embedding_scale: Positive | None = None
    """Multiply embeddings by this number instead (Granite)."""
    embed_norm: bool = False
    """Normalise the embeddings, after positions are added (BART; BLOOM, which adds none)."""
    residual_scale: Positive = 1.0
    """Multiply the output of each sub-layer by this number before it is added to the residual stream (Granite)."""
    scale_logits: bool = False
    """Divide the input of the output layer by sqrt(hidden_size) (T5 with tied embeddings)."""
    logit_scale: Positive | None = None
    """Multiply the input of the output layer by this number instead (Cohere, Granite)."""
    logit_softcap: Positive | None = None
    """Soft cap of the logits (Gemma 2); null = none."""
    src_features: list[FeatureConfig] = []
    """Features of the source tokens; set from `n_src_feats` and the vocabularies of the features."""
    feat_merge: Literal["concat", "sum"] = "concat"
    """Combine the embeddings of `src_features` with the token embedding by concatenation or addition."""
    tie_embeddings: bool = False
    """The output layer shares the decoder's embedding matrix."""
    share_embeddings: bool = False
    """Encoder and decoder share one embedding matrix."""
    dtype: Dtype = "fp32"
    """Type in which the weights are stored."""

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def size_per_head(self) -> int:
        return self.head_dim or self.hidden_size // self.heads

    @property
    def value_size(self) -> int:
        """Width of a head's values."""
        return self.latent.value_dim or self.size_per_head

    @property
    def rotary_size(self) -> int:
        return self.rope.rotary_dim or self.size_per_head

    @property
    def decoder_types(self) -> list[LayerType]:
        """`layer_types`, also where they are all alike."""
        alike: LayerType = "full_attention" if self.sliding_window is None else "sliding_attention"
        return self.layer_types or [alike] * self.decoder_layers

    def window(self, kind: LayerType) -> int | None:
        """The sliding window of layers of this type."""
        return self.sliding_window if kind == "sliding_attention" else None

    @property
    def attention_factor(self) -> float:
        """What attention scores are multiplied by."""
        default = self.size_per_head**-0.5 if self.scale_attention else 1.0
        return default if self.attention_scale is None else self.attention_scale

    @property
    def expert_size(self) -> int:
        """Inner width of an expert."""
        return self.moe.expert_size or self.ffn_size

    @property
    def moe_layers(self) -> list[int]:
        """Numbers of the decoder blocks that have experts."""
        dense = range(self.decoder_layers) if not self.moe.experts else self.moe.dense_layers
        return [layer for layer in range(self.decoder_layers) if layer not in dense]

    @property
    def experts_in_all_layers(self) -> int:
        return self.moe.experts * len(self.moe_layers)

    @property
    def counts(self) -> str:
        """What decides the number of tensors, for messages about a configuration that does not fit them."""
        experts = f" and moe.experts {self.moe.experts}" if self.moe.experts else ""
        return f"encoder_layers {self.encoder_layers} and decoder_layers {self.decoder_layers}{experts}"

    def mean_ffn_size(self, experts: int) -> float:
        """Mean inner width of the decoder's feed-forward layers, `experts` of them in each block that has experts."""
        if not self.moe_layers:
            return self.ffn_size
        share = len(self.moe_layers) / self.decoder_layers
        return share * (experts * self.expert_size + self.moe.shared_size) + (1 - share) * self.ffn_size

    @property
    def divided_sizes(self) -> dict[str, int]:
        """What several processes that compute a block together divide among themselves, by the names of the options."""
        sizes = {"heads": self.heads, "kv_heads": self.num_kv_heads}
        if len(self.moe_layers) < self.decoder_layers or self.encoder_layers:
            sizes["ffn_size"] = self.ffn_size
        if self.moe_layers:
            sizes |= {"moe.expert_size": self.expert_size, "moe.shared_size": self.moe.shared_size}
        return sizes

    @property
    def embedding_factor(self) -> float:
        """What embeddings are multiplied by."""
        default = self.hidden_size**0.5 if self.scale_embeddings else 1.0
        return default if self.embedding_scale is None else self.embedding_scale

    @property
    def logit_factor(self) -> float:
        """What the input of the output layer is multiplied by."""
        default = self.hidden_size**-0.5 if self.scale_logits else 1.0
        return default if self.logit_scale is None else self.logit_scale

    @property
    def encoder_vocab_size(self) -> int:
        return self.src_vocab_size or self.vocab_size

    @property
    def src_token_size(self) -> int:
        """Width of the encoder's token embedding: what concatenated features leave of `hidden_size`."""
        return self.hidden_size - (sum(f.size for f in self.src_features) if self.feat_merge == "concat" else 0)

    @property
    def summary(self) -> str:
        """The architecture in one line."""
        kind = "decoder-only" if self.is_decoder_only else "encoder-decoder"
        layers = f"{self.encoder_layers}+{self.decoder_layers} layers"
        experts = f", {self.moe.experts} experts of which {self.moe.experts_per_token} compute a token"
        return (
            f"{kind}, {layers}, width {self.hidden_size}{experts if self.moe_layers else ''}, "
            f"vocabulary {self.vocab_size:,}"
        )

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
            raise ValueError("shared_norm needs parallel_residual: true, but that is false")
        if self.qk_norm_type == "layernorm" and self.qk_norm_over == "all_heads":
            raise ValueError("qk_norm_type must be rmsnorm with qk_norm_over: all_heads, but is layernorm")
        if self.embedding_scale is not None and self.scale_embeddings:
            raise ValueError("embedding_scale needs scale_embeddings: false, but that is true")
        if self.logit_scale is not None and self.scale_logits:
            raise ValueError("logit_scale needs scale_logits: false, but that is true")
        if self.attention_scale is not None and not self.scale_attention:
            raise ValueError("attention_scale needs scale_attention: true, but that is false")
        if self.attention_softcap is not None and self.position == "shaw":
            raise ValueError(f"attention_softcap must be null with position: shaw, but is {self.attention_softcap}")
        if self.attention_sinks and (self.attention_softcap is not None or self.position == "shaw"):
            raise ValueError("attention_sinks must be false with attention_softcap or position: shaw, but is true")
        if self.activation == "clamped_swiglu" and not self.ffn_gated:
            raise ValueError("activation: clamped_swiglu needs ffn_gated: true, but that is false")
        if self.position == "rotary":
            self.rope.check(self.rotary_size)
        if self.position == "shaw" and self.relative_positions < 1:
            raise ValueError(f"relative_positions must be >= 1 with position: shaw, but is {self.relative_positions}")
        if self.position == "t5" and (self.relative_buckets < 4 or self.relative_buckets % 2):
            raise ValueError(f"relative_buckets must be even and >= 4, but is {self.relative_buckets}")
        if self.position == "t5" and self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                "relative_max_distance must be above half of relative_buckets, but is "
                f"{self.relative_max_distance} with relative_buckets {self.relative_buckets}"
            )
        if self.moe.experts:
            self.moe.check(encoder_layers=self.encoder_layers, decoder_layers=self.decoder_layers)
        if self.latent.kv_rank:
            self._check_latent()
        self._check_layers()
        self._check_features()
        if self.share_embeddings and self.encoder_layers and self.src_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"share_embeddings needs one vocabulary, but src_vocab_size is {self.src_vocab_size} and vocab_size "
                f"{self.vocab_size}"
            )
        return self

    def _check_layers(self) -> None:
        """The lists with an entry for each decoder layer."""
        for name, entries in (("layer_types", self.layer_types), ("rope_layers", self.rope_layers)):
            if entries and len(entries) != self.decoder_layers:
                raise ValueError(
                    f"{name} must have as many entries as decoder_layers, {self.decoder_layers}, but has {len(entries)}"
                )
        within = self.layer_types.count("sliding_attention")
        if self.layer_types and (within > 0) != (self.sliding_window is not None):
            window = "null" if self.sliding_window is None else self.sliding_window
            raise ValueError(
                "sliding_window must be set if, and only if, layer_types has layers of type sliding_attention, but is "
                f"{window} with {within} of them"
            )
        if self.rope_layers and self.position != "rotary":
            raise ValueError(f"rope_layers needs position: rotary, but position is {self.position}")

    def _check_latent(self) -> None:
        found = {
            "an encoder": not self.is_decoder_only,
            f"kv_heads {self.kv_heads}": self.num_kv_heads != self.heads,
            "qk_norm": self.qk_norm,
            "attention_sinks": self.attention_sinks,
            f"position: {self.position}": self.position != "rotary",
        }
        others = [name for name, is_on in found.items() if is_on]
        if others:
            raise ValueError(f"latent.kv_rank must be 0 with {', '.join(others)}, but is {self.latent.kv_rank}")
        if self.rotary_size >= self.size_per_head:
            raise ValueError(
                f"rope.rotary_dim must be below head_dim, {self.size_per_head}, with latent.kv_rank, but is "
                f"{self.rotary_size}"
            )

    def _check_features(self) -> None:
        if not self.src_features:
            return
        if self.is_decoder_only:
            raise ValueError("src_features needs an encoder, but encoder_layers is 0")
        if self.feat_merge == "concat" and (self.share_embeddings or self.src_token_size < 1):
            raise ValueError(
                "feat_merge: concat must leave the token embedding a matrix of its own, but share_embeddings is "
                f"{str(self.share_embeddings).lower()} and {self.src_token_size} of {self.hidden_size} columns are left"
            )
        wrong = [feature.size for feature in self.src_features if feature.size != self.hidden_size]
        if self.feat_merge == "sum" and wrong:
            raise ValueError(f"feat_merge: sum must have features as wide as hidden_size, but one is {wrong[0]} wide")
