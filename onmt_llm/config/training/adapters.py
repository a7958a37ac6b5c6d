"""LoRA adapters, block expansion and quantised base weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onmt_llm.config.numbers import FractionBelowOne, LayerCount, Positive, Width
from onmt_llm.config.section import Section


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021)."""

    lora_layers: list[str] = Field(default_factory=list)
    """Layers that get an adapter: `q_proj` (or `linear_query`), `cross_attn.q_proj`, `encoder.layers.0.mlp.up_proj`."""
    lora_embedding: bool = False
    """The embedding matrices get an adapter too."""
    lora_rank: Width = 2
    """Rank of the adapters."""
    lora_alpha: Positive = 1.0
    """The adapter's output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: FractionBelowOne = 0.0
    """Dropout on the adapter's input."""
    lora_rank_pattern: dict[str, Width] = Field(default_factory=dict)
    """Rank of single layers, by name as in `lora_layers`: `{down_proj: 16, decoder.layers.0.mlp.down_proj: 4}`; of
    several names that fit, the longest counts."""
    lora_alpha_pattern: dict[str, Positive] = Field(default_factory=dict)
    """`lora_alpha` of single layers, by name."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank): high ranks learn as fast as low ones (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Train the length of each row of the weights apart from its direction (DoRA, Liu et al. 2024)."""
    lora_init: Literal["default", "pissa", "loftq"] = "default"
    """Begin with B = 0; with the largest singular directions of the weights (PiSSA, Meng et al. 2024); or with those of
    what quantisation loses (LoftQ, Li et al. 2024), on quantised layers. Embeddings begin with B = 0 in any case."""
    lora_init_iter: Annotated[int, Field(ge=1, le=1000)] | None = None
    """`pissa`: power iterations of a randomised SVD (8 is plenty), null = the exact one, which takes minutes for large
    matrices. `loftq`: alternations, null = 1."""

    @property
    def is_on(self) -> bool:
        """Whether there are adapters to be made."""
        return bool(self.lora_layers or self.lora_embedding)


class ExpandConfig(Section):
    """New blocks in a model whose own weights are frozen: twins of some of its blocks (Control LLM, Wei et al. 2025),
    or further blocks (LLaMA Pro, Wu et al. 2024). Step 0 computes what the model did."""

    expand_every: LayerCount = 0
    """Expand every n-th block, the last of each n; 0 = none, unless `expand_blocks` names some."""
    expand_blocks: list[Annotated[int, Field(ge=0, le=1024)]] = Field(default_factory=list)
    """Blocks to expand, by number; the first is 0."""
    expand_stacks: list[Literal["encoder", "decoder"]] = Field(default=["decoder"])
    """Whose blocks these are."""
    expand_type: Literal["concat", "stack"] = "concat"
    """`concat`: a copy of the block works beside it, on the same input, and their outputs are mixed; checkpoints hold
    the copies alone. `stack`: a copy that adds nothing yet stands behind it; checkpoints are whole, deeper models."""
    expand_lerp: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`concat`: weight of the copy's output; the block's own is 1 - expand_lerp."""

    @property
    def is_on(self) -> bool:
        """Whether any blocks are to be expanded."""
        return bool(self.expand_every or self.expand_blocks)

    @model_validator(mode="after")
    def _check(self) -> ExpandConfig:
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


class QuantConfig(Section):
    """Frozen layers held in 8 or 4 bits while the rest is trained."""

    quant_layers: list[str] = Field(default_factory=list)
    """Layers to quantise, by name, as in `lora_layers`; with `expand_type: concat` the copies stay as they are."""
    quant_type: Literal["", "bnb_8bit", "bnb_NF4", "bnb_FP4", "int8"] = ""
    """Number format: bitsandbytes' three, or `int8`, which needs no package; empty with `quant_layers` = `bnb_8bit`."""
    quant_compute: Literal["auto", "int8", "float"] = "auto"
    """`quant_type: int8`, what its layers multiply in while they are trained: `float` is `model_dtype`, and inputs lose
    nothing; with `int8` inputs and gradients are quantised too, token by token, which is faster on CPUs that have
    instructions for it (AVX512-VNNI). `auto` = `int8` on those. Validation and generation always compute in float."""

    @property
    def resolved_type(self) -> str:
        return self.quant_type or ("bnb_8bit" if self.quant_layers else "")

    @model_validator(mode="after")
    def _check(self) -> QuantConfig:
        if self.quant_compute == "int8" and self.quant_type != "int8":
            kind = self.resolved_type or "not set"
            raise ValueError(f"quant_compute: int8 must go with quant_type: int8, but quant_type is {kind}")
        return self
