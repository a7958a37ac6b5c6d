"""Options of what a run trains, how, and how the result is validated.

`OptimConfig` (optimiser and schedule), `LossConfig` and `PreferenceConfig` (extra terms, preference optimisation),
`RegularizationConfig`, `PerformanceConfig` (precision, memory, speed), and parameter-efficient training: `LoraConfig`,
`ExpansionConfig` (block expansion), `QuantizationConfig` (quantised frozen layers). `ValidationConfig` is last.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from onmt_llm.config.model import Dtype
from onmt_llm.config.numbers import (
    BeamSize,
    Count,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    HeadsOrAll,
    LayerCount,
    LayerIndex,
    Length,
    Positive,
    PositiveOrZero,
    Width,
)
from onmt_llm.config.section import Names, Section

ObjectiveName = Literal["sft", "dpo", "orpo", "kto"]
"""Values of `objective`: the likelihood of the examples, and the preference losses."""
REFERENCE_FREE = frozenset({"sft", "orpo"})
"""Those without a reference model."""
UNPAIRED = frozenset({"kto"})
"""Those that judge single answers instead of pairs, against an estimate of the divergence from the reference."""
TO_THE_END = frozenset({"cosine", "linear"})
"""Values of `decay_method` with which the learning rate falls until `train_steps`."""


class OptimConfig(Section):
    """Optimiser, learning-rate schedule, gradient clipping and EMA."""

    optim: Literal[
        "sgd",
        "adagrad",
        "adadelta",
        "adam",
        "adamw",
        "adafactor",
        "lion",
        "muon",
        "galore",
        "fusedadam",
        "adamw8bit",
        "pagedadamw8bit",
        "pagedadamw32bit",
        "lion8bit",
        "pagedlion8bit",
    ] = "adamw"
    """Optimiser. `fusedadam` = NVIDIA apex's if installed, else torch's fused AdamW. `muon` and `galore` apply to the
    matrices of the blocks; all other weights use AdamW."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1e-4
    """Learning rate; for `noam`, `noamwd` and `rsqrt`, the factor of the formula."""
    decay_method: Literal["none", "noam", "noamwd", "rsqrt", "cosine", "linear"] = "none"
    """Learning-rate schedule. `cosine` and `linear` end at `train_steps`."""
    warmup_steps: CountOrZero = 0
    """Warm-up: steps over which the learning rate rises."""
    start_decay_steps: CountOrZero | None = None
    """`none` and `noamwd`: from this step on, multiply by `learning_rate_decay` every `decay_steps`; null = never, with
    `noamwd` 50000."""
    decay_steps: Count = 10000
    """`none` and `noamwd`: steps between two decays."""
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`none` and `noamwd`: factor of each decay."""
    min_learning_rate: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """`cosine` and `linear`: final learning rate."""
    adam_beta1: FractionBelowOne = 0.9
    """Decay of the running mean of gradients (first moment)."""
    adam_beta2: FractionBelowOne = 0.999
    """Decay of the running mean of squared gradients (second moment)."""
    adam_eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Term added to the denominator of Adam for numerical stability."""
    adagrad_accumulator_init: PositiveOrZero = 0.0
    """`adagrad`: initial value of the sums of squared gradients."""
    muon_momentum: FractionBelowOne = 0.95
    """`muon`: momentum."""
    galore_rank: Width = 128
    """`galore`: rank of the gradient projection."""
    galore_gap: Count = 200
    """`galore`: steps between two updates of the projection, each of which takes a singular value decomposition."""
    galore_scale: Positive = 0.25
    """`galore`: scale of the projected updates."""
    loraplus_lr_ratio: Positive = 1.0
    """LoRA+ (Hayou et al. 2024): the B matrices of adapters use `learning_rate` times this; 16 is usual."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay; not applied to biases, norms and embeddings."""
    max_grad_norm: PositiveOrZero = 5.0
    """Clip the gradient norm to this value; 0 = off."""
    label_smoothing: FractionBelowOne = 0.0
    """Label smoothing: probability spread evenly over the vocabulary. Applies to the training loss only."""
    loss_scale: PositiveOrZero = 0.0
    """`model_dtype: fp16`: static loss scale; 0 = dynamic."""
    average_decay: Fraction = 0.0
    """EMA of the weights, saved as `<save_model>_step_<N>_ema`: share of the current weights in each update of the
    average. 0 = off; 1e-4 is a good start."""
    average_every: Count = 1
    """Steps between two updates of that average."""


class LossConfig(Section):
    """Extra terms of the training loss: a language-model prior, guided alignment and the balance of experts."""

    lm_prior_model: str | None = None
    """Language model to use as a prior (Baziotis et al. 2020): a checkpoint or a CTranslate2 folder with the same
    target vocabulary."""
    lm_prior_lambda: PositiveOrZero = 0.0
    """Weight of the prior in the loss."""
    lm_prior_tau: Positive = 1.0
    """Temperature of both distributions in the prior term."""
    lambda_align: PositiveOrZero = 0.0
    """Weight of guided alignment (Garg et al. 2019) in the loss; needs alignments (`path_align`)."""
    alignment_layer: LayerIndex = -3
    """Decoder layer whose cross-attention is guided; negative = counted from the last, which is -1."""
    alignment_heads: HeadsOrAll = 0
    """Number of heads of that layer, from the first on, whose mean is guided; 0 = all."""
    full_context_alignment: bool = False
    """Let the guided attention see the whole target, in a second pass through its layer."""
    lambda_balance: PositiveOrZero | None = None
    """Mixture of experts: weight of the load-balancing loss of each micro-batch (Fedus et al. 2022); null = the model's
    own, `moe.balance_loss`; 0 = off. Preference losses do without it."""

    @property
    def terms(self) -> dict[str, object]:
        """The options that ask for a term, by name."""
        return {
            "lm_prior_model": self.lm_prior_model,
            "lambda_align": self.lambda_align,
            "lambda_balance": self.lambda_balance,
        }

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if self.lm_prior_lambda and not self.lm_prior_model:
            raise ValueError(f"lm_prior_lambda needs lm_prior_model, but is {self.lm_prior_lambda:g} without one")
        if self.lm_prior_model and "lm_prior_lambda" not in self.model_fields_set:
            raise ValueError("lm_prior_model needs lm_prior_lambda, the weight of the prior, whose default is 0")
        return self


class PreferenceConfig(Section):
    """Preference optimisation: `objective: dpo`, `orpo` and `kto`."""

    reference_model: str | None = None
    """`dpo`, `kto`: checkpoint of the reference model; null = the base of the adapters that are trained. Required when
    the whole model is trained; usually the same as `train_from`."""
    dpo_beta: Positive = 0.1
    """DPO's beta: smaller values let the model move further from the reference."""
    dpo_loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    """Loss function: DPO (`sigmoid`), SLiC (`hinge`), IPO (`ipo`), or DPO that allows for wrong labels (`robust`)."""
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """`dpo_loss: robust`: expected fraction of pairs whose labels are swapped."""
    dpo_sft_weight: PositiveOrZero = 0.0
    """Weight of an additional loss term: the negative log-likelihood per token of the chosen answer."""
    orpo_beta: Positive = 0.1
    """`orpo`: weight of the odds-ratio term."""
    kto_beta: Positive = 0.1
    """`kto`: as `dpo_beta`."""
    kto_desirable_weight: PositiveOrZero = 1.0
    """`kto`: weight of desirable answers."""
    kto_undesirable_weight: PositiveOrZero = 1.0
    """`kto`: weight of undesirable answers. If one kind is much more frequent, the weights should compensate."""

    @model_validator(mode="after")
    def _check(self) -> PreferenceConfig:
        if self.dpo_label_smoothing and self.dpo_loss != "robust":
            raise ValueError(f"dpo_label_smoothing needs dpo_loss: robust, but that is {self.dpo_loss}")
        return self


class RegularizationConfig(Section):
    """Dropout and embedding noise during training."""

    dropout: list[FractionBelowOne] = Field(default_factory=lambda: [0.0])
    """Dropout on residual branches; several values follow each other at `dropout_steps`."""
    attention_dropout: list[FractionBelowOne] = Field(default_factory=lambda: [0.0])
    """Dropout on attention weights; several values follow each other at `dropout_steps`."""
    dropout_steps: list[CountOrZero] = Field(default_factory=lambda: [0])
    """Steps at which the next value of `dropout` and `attention_dropout` takes effect."""
    neftune_noise_alpha: PositiveOrZero = 0.0
    """Add uniform noise of up to this / sqrt(tokens of the example x hidden_size) to the token embeddings (NEFTune,
    Jain et al. 2024). 5 to 15 help chat models; 0 = off."""


class PerformanceConfig(Section):
    """Precision, memory and speed of training."""

    model_dtype: Dtype = "fp32"
    """Weight type during training: float32, bfloat16 or float16 (with float32 adapters and loss scaling)."""
    pure_bf16: bool = False
    """Train bfloat16 weights without a float32 copy (needs `model_dtype: bf16` and `optim: adamw`). Kahan summation
    keeps what rounding would lose of each update."""
    use_ckpting: Names[Literal["block", "mha", "ffn", "lora"]] = Field(default_factory=list)
    """Activation checkpointing: parts to recompute in the backward pass to save memory. `block` = whole blocks, `mha` =
    attention, `ffn` = feed-forward layers, `lora` = the inputs of adapters (large only with `lora_dropout`)."""
    offload_activations: bool = False
    """Keep the activations of the blocks in main memory instead of GPU memory until the backward pass."""
    optimizer_in_backward: bool = False
    """Update each parameter during the backward pass as soon as its gradient is complete, then free the gradient; the
    gradients of the whole model never exist at once. Needs `accum_count: 1`, `max_grad_norm: 0` and one process."""
    kernels: Literal["auto", "torch", "liger"] = "torch"
    """Kernels for norms and gated activations on a GPU: torch's or those of the liger-kernel package; `auto` = Liger if
    installed."""
    compile_blocks: bool = False
    """Compile each block with torch.compile; needs a C++ compiler and delays the first step."""
    loss_chunk_tokens: CountOrZero = 0
    """Target tokens that pass through the output layer and the loss at once, so the logits of a whole batch never
    exist; 0 = a size that suits the device."""


class LoraConfig(Section):
    """Low-rank adapters, LoRA (Hu et al. 2021)."""

    lora_layers: Names[str] = Field(default_factory=list)
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
    expand_stacks: Names[Literal["encoder", "decoder"]] = Field(default=["decoder"])
    """Stacks whose blocks are expanded."""
    expand_type: Literal["concat", "stack"] = "concat"
    """`concat`: each copy runs in parallel with its block, and their outputs are mixed; checkpoints hold only the
    copies. `stack`: each copy follows its block and at first adds nothing; checkpoints are complete, deeper models."""
    expand_lerp: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`concat`: weight of the output of the copy; the block itself has 1 - expand_lerp."""
    expand_divergence: PositiveOrZero = 0.0
    """`concat`: weight of the divergence loss, the mean squared difference between the outputs of a block and its copy,
    relative to the former; 0 = off. It keeps the hidden states close to those of the original model. Decoder only."""

    @property
    def is_on(self) -> bool:
        """Whether block expansion is requested."""
        return bool(self.expand_every or self.expand_blocks)

    @property
    def _in_encoder(self) -> bool:
        return "encoder" in self.expand_stacks

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
            raise ValueError("expand_lerp needs expand_type: concat, but that is stack: remove expand_lerp")
        if self.expand_divergence and not (self.is_on and self.expand_type == "concat" and not self._in_encoder):
            raise ValueError(
                "expand_divergence needs expand_every or expand_blocks, expand_type: concat and "
                "expand_stacks: [decoder]"
            )
        return self


class QuantizationConfig(Section):
    """Quantised frozen layers: 8 or 4 bits, while adapters or other layers are trained."""

    quant_layers: Names[str] = Field(default_factory=list)
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
            raise ValueError(f"quant_compute: int8 needs quant_type: int8, but quant_type is {kind}")
        return self


_OWN_CRITERIA = ("ppl", "accuracy", "loss", "reward_accuracy")


class ValidationConfig(Section):
    """Validation during training, and early stopping."""

    valid_metrics: Names[str] = Field(default_factory=list)
    """Metrics of generated answers: BLEU, CHRF, TER, ROUGE1, ROUGE2, ROUGEL, ROUGELSUM, EXACT_MATCH, those of
    plug-ins."""
    valid_beam_size: BeamSize = 1
    """Beam size of these translations; 1 = greedy."""
    valid_max_length: Length = 250
    """Maximum length of these translations, in tokens."""
    dump_preds: str | None = None
    """Folder for the translations of each validation (`preds.valid_step_<N>.txt`) and the references."""
    scoring_debug: bool = False
    """Also write source, reference and prediction side by side: `debug.valid_step_<N>.txt`."""
    early_stopping: CountOrZero = 0
    """Stop after this many validations without improvement; 0 = off."""
    early_stopping_criteria: Names[str] = Field(default_factory=lambda: ["ppl"])
    """Criteria that must improve: `ppl`, `accuracy`, `loss`, `reward_accuracy`, or any of `valid_metrics`. With
    several, all must improve. (OpenNMT-py's default is `[ppl, accuracy]`.)"""

    @field_validator("valid_metrics")
    @classmethod
    def _upper(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(name.upper() for name in names))

    @field_validator("early_stopping_criteria")
    @classmethod
    def _criteria(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError("must name at least one criterion, but is empty")
        return list(dict.fromkeys(name if name in _OWN_CRITERIA else name.upper() for name in names))

    @model_validator(mode="after")
    def _check(self) -> ValidationConfig:
        unknown = [n for n in self.early_stopping_criteria if n not in (*_OWN_CRITERIA, *self.valid_metrics)]
        if unknown:
            raise ValueError(
                f"early_stopping_criteria must be {', '.join(_OWN_CRITERIA)} or among valid_metrics, but is "
                f"{', '.join(unknown)}"
            )
        return self
