"""Parameter-efficient training: LoRA adapters, block expansion and quantised base weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onmt_llm.config.numbers import FractionBelowOne, LayerCount, Positive, Width
from onmt_llm.config.section import Section


class LoraConfig(Section):
    """Low-rank adapters, LoRA (Hu et al. 2021)."""

    lora_layers: list[str] = Field(default_factory=list)
    """Layers to adapt, by name: `q_proj` (or `linear_query`), `cross_attn.q_proj`, `encoder.layers.0.mlp.up_proj`."""
    lora_embedding: bool = False
    """Adapt the embedding matrices too."""
    lora_rank: Width = 2
    """Rank of the adapters."""
    lora_alpha: Positive = 1.0
    """LoRA alpha: the output of an adapter is scaled by lora_alpha / lora_rank."""
    lora_dropout: FractionBelowOne = 0.0
    """Dropout on the input of the adapters."""
    lora_rank_pattern: dict[str, Width] = Field(default_factory=dict)
    """Ranks of individual layers, by name as in `lora_layers`: `{down_proj: 16, decoder.layers.0.mlp.down_proj: 4}`; if
    several names match, the longest wins."""
    lora_alpha_pattern: dict[str, Positive] = Field(default_factory=dict)
    """Alphas of individual layers, by name as in `lora_rank_pattern`."""
    use_rslora: bool = False
    """rsLoRA: scale by lora_alpha / sqrt(lora_rank), so high ranks learn as fast as low ones (Kalajdzievski 2023)."""
    use_dora: bool = False
    """DoRA: train the magnitude of each weight row separately from its direction (Liu et al. 2024)."""
    lora_init: Literal["default", "pissa", "loftq"] = "default"
    """Initialisation: B = 0 (`default`), the top singular directions of the weights (PiSSA, Meng et al. 2024), or those
    of the quantisation error (LoftQ, Li et al. 2024; quantised layers only). Embeddings always start with B = 0."""
    lora_init_iter: Annotated[int, Field(ge=1, le=1000)] | None = None
    """`pissa`: power iterations of a randomised SVD (8 is plenty); null = the exact SVD, which takes minutes for large
    matrices. `loftq`: number of alternations; null = 1."""

    @property
    def is_on(self) -> bool:
        """Whether adapters are requested."""
        return bool(self.lora_layers or self.lora_embedding)


class ExpansionConfig(Section):
    """Block expansion: train copies of some blocks of a frozen model, beside them (Control LLM, Wei et al. 2025) or
    after them (LLaMA Pro, Wu et al. 2024). At step 0 the outputs are those of the original model."""

    expand_every: LayerCount = 0
    """Expand every n-th block, the last of each group of n; 0 = only the blocks in `expand_blocks`."""
    expand_blocks: list[Annotated[int, Field(ge=0, le=1024)]] = Field(default_factory=list)
    """Indices of the blocks to expand; the first is 0."""
    expand_stacks: list[Literal["encoder", "decoder"]] = Field(default=["decoder"])
    """Stacks whose blocks are expanded."""
    expand_type: Literal["concat", "stack"] = "concat"
    """`concat`: each copy runs in parallel with its block, and their outputs are mixed; checkpoints hold only the
    copies. `stack`: each copy follows its block and at first adds nothing; checkpoints are complete, deeper models."""
    expand_lerp: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`concat`: weight of the output of the copy; the block itself has 1 - expand_lerp."""

    @property
    def is_on(self) -> bool:
        """Whether block expansion is requested."""
        return bool(self.expand_every or self.expand_blocks)

    @model_validator(mode="after")
    def _check(self) -> ExpansionConfig:
        if self.expand_every and self.expand_blocks:
            raise ValueError("expand_every and expand_blocks must not both be given")
        for name, values in (("expand_blocks", self.expand_blocks), ("expand_stacks", self.expand_stacks)):
            if len({*values}) < len(values):
                raise ValueError(f"{name} must name each once, but is {', '.join(map(str, values))}")
        if not self.expand_stacks:
            raise ValueError("expand_stacks must name encoder, decoder or both, but is empty")
        if self.expand_type == "stack" and "expand_lerp" in self.model_fields_set:
            raise ValueError("expand_lerp must go with expand_type: concat, but that is stack")
        return self


class QuantizationConfig(Section):
    """Quantised frozen layers: 8 or 4 bits, while adapters or other layers are trained."""

    quant_layers: list[str] = Field(default_factory=list)
    """Layers to quantise, by name as in `lora_layers`. With `expand_type: concat` the copies are not quantised."""
    quant_type: Literal["", "bnb_8bit", "bnb_NF4", "bnb_FP4", "int8"] = ""
    """Number format: one of bitsandbytes' three, or `int8`, which needs no package; empty = `bnb_8bit` if there are
    `quant_layers`."""
    quant_compute: Literal["auto", "int8", "float"] = "auto"
    """`quant_type: int8`: arithmetic of these layers in training. `float` = `model_dtype`. `int8` also quantises inputs
    and gradients, per token, which is faster on CPUs with AVX512-VNNI but no AMX; `auto` = `int8` there, else `float`.
    Validation and generation always use float."""

    @property
    def resolved_type(self) -> str:
        return self.quant_type or ("bnb_8bit" if self.quant_layers else "")

    @model_validator(mode="after")
    def _check(self) -> QuantizationConfig:
        if self.quant_compute == "int8" and self.quant_type != "int8":
            kind = self.resolved_type or "not set"
            raise ValueError(f"quant_compute: int8 must go with quant_type: int8, but quant_type is {kind}")
        return self
