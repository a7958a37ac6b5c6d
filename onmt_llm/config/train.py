"""Options of `onmt_llm_train`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from onmt_llm.config.data import BatchConfig, DataConfig, EmbeddingsConfig, VocabularyConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.model import Dtype, ModelConfig
from onmt_llm.config.numbers import (
    BeamSize,
    Count,
    CountOrAll,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    HeadsOrAll,
    LayerCount,
    LayerIndex,
    Length,
    Positive,
    PositiveOrZero,
    Seed,
    Width,
    WorkersOrZero,
)
from onmt_llm.config.safety import SafetyConfig
from onmt_llm.config.section import Section
from onmt_llm.config.task import Decision, Task, decide_task, with_defaults
from onmt_llm.config.tracking import WatchConfig
from onmt_llm.output_checks import name_problem

AUTO = "auto"
"""Value of `train_from`: whatever this run has come to."""


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


class OptimConfig(Section):
    """Optimiser, learning rate and what happens to the gradient."""

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
    """Optimiser; `fusedadam` is NVIDIA apex's where it is installed, else torch's fused AdamW. `muon` and `galore`
    treat the matrices of the blocks in their way and all other weights in AdamW's."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1e-4
    """Learning rate, or the factor of the `noam`, `noamwd` and `rsqrt` formulas."""
    decay_method: Literal["none", "noam", "noamwd", "rsqrt", "cosine", "linear"] = "none"
    """Course of the learning rate over the steps."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises."""
    start_decay_steps: CountOrZero | None = None
    """`decay_method: none`: from this step on, multiply by `learning_rate_decay` every `decay_steps`; null = never."""
    decay_steps: Count = 10000
    """`decay_method: none`: steps between two decays."""
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`decay_method: none`: factor of one decay."""
    min_learning_rate: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """`cosine` and `linear` end here."""
    adam_beta1: FractionBelowOne = 0.9
    """Decay of the running mean of gradients."""
    adam_beta2: FractionBelowOne = 0.999
    """Decay of the running mean of squared gradients."""
    adam_eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the denominator of Adam's step."""
    adagrad_accumulator_init: PositiveOrZero = 0.0
    """`adagrad`: what the sums of squared gradients begin with."""
    muon_momentum: FractionBelowOne = 0.95
    """`muon`: decay of the running mean of gradients."""
    galore_rank: Width = 128
    """`galore`: rank that the gradients of matrices are projected to."""
    galore_gap: Count = 200
    """`galore`: updates between two bases of that projection; each takes a singular value decomposition."""
    galore_scale: Positive = 0.25
    """`galore`: factor of the projected updates."""
    loraplus_lr_ratio: Positive = 1.0
    """The B matrices of adapters learn at this times `learning_rate` (LoRA+, Hayou et al. 2024); 16 is usual."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay; biases, norms and embeddings are spared."""
    max_grad_norm: PositiveOrZero = 5.0
    """Clip the gradient to this norm; 0 = off."""
    label_smoothing: FractionBelowOne = 0.0
    """Share of the target that is spread evenly over the whole vocabulary; only the training loss is smoothed."""
    loss_scale: PositiveOrZero = 0.0
    """`model_dtype: fp16`: fixed loss scale; 0 = dynamic."""
    average_decay: Fraction = 0.0
    """Weight of the present weights in a running average, saved as `<save_model>_step_<N>_ema`; 0 = off, try 1e-4."""
    average_every: Count = 1
    """Updates between two contributions to that average."""


class ObjectiveConfig(Section):
    """Further terms of the training loss: a language model as prior, word alignments as guide."""

    lm_prior_model: str | None = None
    """Language model with the same target vocabulary, whose opinion is a prior (Baziotis et al. 2020): a checkpoint, or
    a CTranslate2 folder."""
    lm_prior_lambda: PositiveOrZero = 0.0
    """Weight of the prior in the loss."""
    lm_prior_tau: Positive = 1.0
    """Temperature that both distributions are compared at."""
    lambda_align: PositiveOrZero = 0.0
    """Weight of guided alignment (Garg et al. 2019) in the loss; the corpora bring their alignments as `path_align`."""
    alignment_layer: LayerIndex = -3
    """Decoder layer whose attention to the source is guided; negative = counted from the last, which is -1."""
    alignment_heads: HeadsOrAll = 0
    """Heads of that layer that are guided, from the first on, by their mean; 0 = all."""
    full_context_alignment: bool = False
    """The guided attention sees the whole target, in a second pass through its layer."""


class PreferenceConfig(Section):
    """Learning from better and worse answers: `objective: dpo`, `orpo` and `kto`."""

    reference_model: str | None = None
    """Checkpoint that the model is kept near to (`dpo`, `kto`); null = the base of the adapters that are trained.
    Needed where the whole model is trained: usually the one that `train_from` begins with."""
    dpo_beta: Positive = 0.1
    """How near: the smaller, the further the model may go."""
    dpo_loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    """Form of the loss: that of DPO, of SLiC, of IPO, or one that reckons with wrong labels."""
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """`dpo_loss: robust`: share of the pairs that are the wrong way round."""
    dpo_sft_weight: PositiveOrZero = 0.0
    """Weight of the likelihood of the better answer, by the token, as a further term."""
    orpo_beta: Positive = 0.1
    """Weight of the odds ratio beside the likelihood."""
    kto_beta: Positive = 0.1
    """As `dpo_beta`."""
    kto_desirable_weight: PositiveOrZero = 1.0
    """Weight of good answers."""
    kto_undesirable_weight: PositiveOrZero = 1.0
    """Weight of bad ones; with many more of one kind than of the other, the weights should make up for it."""


_OWN_CRITERIA = ("ppl", "accuracy", "loss", "reward_accuracy")


class ValidationConfig(Section):
    """How the model is judged while it is trained."""

    valid_metrics: list[str] = Field(default_factory=list)
    """Scores of generated translations: BLEU, CHRF, TER; those of `scorers.py` and of plug-ins."""
    valid_beam_size: BeamSize = 1
    """Beam of these translations; 1 = greedy."""
    valid_max_length: Length = 250
    """Tokens that such a translation may have at most."""
    dump_preds: str | None = None
    """Folder for the translations of each validation, `preds.valid_step_<N>.txt`, and for the references."""
    scoring_debug: bool = False
    """Write source, reference and prediction side by side too: `debug.valid_step_<N>.txt`."""
    early_stopping: CountOrZero = 0
    """Stop after this many validations without a better score; 0 = off."""
    early_stopping_criteria: list[str] = Field(default_factory=lambda: ["ppl"])
    """What must get better: `ppl`, `accuracy`, `loss`, `reward_accuracy`, any of `valid_metrics`; several = all of them
    together. (OpenNMT-py's default is `[ppl, accuracy]`.)"""

    @field_validator("valid_metrics")
    @classmethod
    def _upper(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(name.upper() for name in names))

    @field_validator("early_stopping_criteria")
    @classmethod
    def _criteria(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError("must name at least one criterion, but names none")
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


class RunConfig(Section):
    """Length, precision, checkpoints and validation of a run."""

    save_model: str = "model"
    """Prefix of checkpoints: `<save_model>_step_<N>`."""
    model_task: Task | None = None
    """Language model or translation; null = what `train_from` is. Without that: translation where `encoder_layers` is
    above 0, a corpus has a `path_tgt`, or there is a `tgt_vocab`; else a language model."""
    model_defaults: Literal["onmt_llm", "opennmt"] = "onmt_llm"
    """Whose defaults the architecture of a new model has: with `opennmt`, which `encoder_type` and `decoder_type` stand
    for, 2 layers and a bias on the output layer of a language model too."""
    train_from: str | None = None
    """Checkpoint to begin with; one that holds a training state is resumed, any other is fine-tuned. `auto` = the
    newest of this run (`save_model`), or `init_from` where there is none yet."""
    init_from: str | None = None
    """`train_from: auto`: checkpoint that the run begins with, at step 0; null = new weights."""
    update_vocab: bool = False
    """Fine-tune `train_from` with the vocabulary of `src_vocab` and `tgt_vocab`; known tokens keep their rows."""
    override_opts: bool = False
    """Architecture options written in the YAML replace those of `train_from` (never the ones left out)."""
    reset_optim: Literal["none", "all", "states", "keep_states"] = "none"
    """When resuming: forget optimiser and step (`all`), the optimiser's state, or the learning-rate settings."""
    train_steps: Count = 100000
    """Optimiser updates in all, those before a resume included."""
    accum_count: list[Annotated[int, Field(ge=1, le=10**5)]] = Field(default_factory=lambda: [1])
    """Micro-batches of one update; a list changes with `accum_steps`."""
    accum_steps: list[CountOrZero] = Field(default_factory=lambda: [0])
    """Updates at which the next value of `accum_count` begins."""
    normalization: Literal["tokens", "sents"] = "tokens"
    """Divide the summed loss of an update by its trained tokens, or by its examples."""
    model_dtype: Dtype = "fp32"
    """Type of the weights while training: float32, bfloat16, or float16 (with float32 adapters and loss scaling)."""
    pure_bf16: bool = False
    """Train the whole model in bf16 weights (with `model_dtype: bf16` and `optim: adamw`): what bf16 would round away
    of an update is kept beside each weight (Kahan summation), instead of float32 weights that are cast when used."""
    dropout: list[FractionBelowOne] = Field(default_factory=lambda: [0.0])
    """Dropout on residual branches; a list changes with `dropout_steps`."""
    attention_dropout: list[FractionBelowOne] = Field(default_factory=lambda: [0.0])
    """Dropout on attention weights; a list changes with `dropout_steps`."""
    dropout_steps: list[CountOrZero] = Field(default_factory=lambda: [0])
    """Updates at which the next value of the dropouts begins."""
    neftune_noise_alpha: PositiveOrZero = 0.0
    """Noise on the token embeddings while training: uniform, up to this / sqrt(tokens of the example x hidden_size)
    (NEFTune, Jain et al. 2024); 5 to 15 help in chat models, 0 = off."""
    param_init: Annotated[float, Field(ge=0, le=100)] = 0.0
    """A new model's weights are uniform in +-this; 0 = the default initialisation of `nn.init`."""
    param_init_glorot: bool = False
    """A new model's matrices are Xavier-uniform (Glorot and Bengio 2010)."""
    use_ckpting: list[Literal["block", "mha", "ffn", "lora"]] = Field(default_factory=list)
    """Parts that are computed again in the backward pass, to save memory: whole blocks, attentions, feed-forward
    layers, what adapters make of their inputs (which is much with `lora_dropout` alone)."""
    offload_activations: bool = False
    """What the blocks keep for the backward pass waits in main memory instead of on the GPU."""
    optimizer_in_backward: bool = False
    """Update each parameter inside the backward pass, as soon as its gradient is complete, and free that: whole models
    are then trained without ever holding all gradients. Needs `accum_count: 1`, `max_grad_norm: 0` and one process."""
    kernels: Literal["auto", "torch", "liger"] = "torch"
    """Whose kernels compute norms and gated activations on a GPU: torch's, or those of the package liger-kernel; `auto`
    = the latter where they are installed."""
    compile_blocks: bool = False
    """Compile each block by torch.compile, which needs a C++ compiler and takes some time when training begins."""
    loss_chunk_tokens: CountOrZero = 0
    """Trained positions that go through the output layer and the loss together, so that the logits of a whole batch
    never exist; 0 = as many as the device likes."""
    save_checkpoint_steps: Count = 5000
    """Updates between two checkpoints."""
    keep_checkpoint: CountOrAll = -1
    """Checkpoints kept on disk; -1 = all."""
    valid_steps: Count = 10000
    """Updates between two validations."""
    freeze_encoder: bool = False
    """The encoder's layers are not trained; its embeddings are."""
    freeze_decoder: bool = False
    """The decoder's layers are not trained; its embeddings and the output layer are."""
    seed: Seed = -1
    """Seed of initialisation, dropout and data; -1 = a new one, which is logged."""
    threads: WorkersOrZero = 0
    """CPU threads; 0 = torch's choice."""

    @field_validator("save_model")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        name = prefix.rpartition("/")[2]
        if problem := name_problem(name):
            said = problem if name.strip(".") else f"is '{prefix}'"
            raise ValueError(f"must end in a name that checkpoints can begin with, as in run/model, but {said}")
        return prefix


class LogConfig(Section):
    """What a run says, and where."""

    report_every: Count = 50
    """Updates between two lines of progress."""
    tensorboard: bool = False
    """Write TensorBoard events."""
    tensorboard_log_dir: str = "runs/onmt_llm"
    """Folder of the events; each run gets one below it, named by its start."""
    metrics_file: str | None = None
    """JSON lines with the figures of every report; null = `<save_model>_metrics.jsonl`."""
    log_file: str | None = None
    """Copy of the log."""
    progress: Literal["auto", "bar", "line", "none"] = "auto"
    """A bar where stderr is a terminal, else lines."""
    verbose: bool = False
    """Say more."""


class DeviceConfig(Section):
    """Processors. Several are used under torchrun; these options of OpenNMT-py choose the kind."""

    world_size: CountOrZero = 1
    """Processes in all; more than one is started with torchrun. 0 = CPU."""
    gpu_ranks: list[CountOrZero] = Field(default_factory=list)
    """OpenNMT-py's list of GPU ranks; a GPU is used where there is one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` = CUDA where it is available."""


class TrainConfig(Section):
    """Everything that `onmt_llm_train` can be told."""

    corpora: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    batching: BatchConfig = BatchConfig()
    architecture: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    expansion: ExpandConfig = ExpandConfig()
    quantization: QuantConfig = QuantConfig()
    optimizer: OptimConfig = OptimConfig()
    loss: ObjectiveConfig = ObjectiveConfig()
    preference: PreferenceConfig = PreferenceConfig()
    validation: ValidationConfig = ValidationConfig()
    run: RunConfig = RunConfig()
    safety: SafetyConfig = SafetyConfig()
    logging: LogConfig = LogConfig()
    watching: WatchConfig = WatchConfig()
    devices: DeviceConfig = DeviceConfig()
    integrity: IntegrityConfig = IntegrityConfig()

    @property
    def has_new_model(self) -> bool:
        """Whether the run begins with new weights (or goes on from a checkpoint of its own that did)."""
        return (self.run.init_from if self.run.train_from == AUTO else self.run.train_from) is None

    def decide_task(self) -> Decision:
        """What a new model is for.

        Raises:
            ValueError: What is written contradicts itself, or leaves that open.
        """
        written = self.architecture.model_fields_set
        layers = self.architecture.encoder_layers if "encoder_layers" in written else None
        return decide_task(self.run.model_task, layers, self.corpora.data, self.vocabulary.tgt_vocab)

    def settled(self) -> Self:
        """The same with the task and the whole architecture of the new model, if there is one."""
        if not self.has_new_model:
            return self
        task = self.decide_task().task
        architecture = with_defaults(self.architecture, task, family=self.run.model_defaults)
        run = self.run.model_copy(update={"model_task": task})
        return self.model_copy(update={"architecture": architecture, "run": run})

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if found := list(self._at_odds()):
            raise ValueError("\n".join(found))
        return self

    def _at_odds(self) -> Iterator[str]:
        """What the sections say that does not go together."""
        run = self.run
        if self.has_new_model:
            try:
                self.decide_task()
            except ValueError as error:
                yield str(error)
        extra = {
            "label_smoothing": self.optimizer.label_smoothing,
            "lm_prior_model": self.loss.lm_prior_model,
            "lambda_align": self.loss.lambda_align,
        }
        named = [name for name, value in extra.items() if value]
        if self.corpora.objective != "sft" and named:
            yield f"{' and '.join(named)} must be left out with objective: {self.corpora.objective}"
        if self.corpora.objective == "sft" and "reward_accuracy" in self.validation.early_stopping_criteria:
            yield "early_stopping_criteria reward_accuracy must go with objective: dpo, orpo or kto"
        if self.expansion.is_on and self.lora.is_on:
            yield "expand_every and expand_blocks must be left out with LoRA (lora_layers, lora_embedding)"
        yield from _same_length(accum_count=run.accum_count, accum_steps=run.accum_steps)
        yield from _same_length(
            dropout=run.dropout, attention_dropout=run.attention_dropout, dropout_steps=run.dropout_steps
        )
        if run.init_from and run.train_from != AUTO:
            yield f"init_from must go with train_from: {AUTO}, but that is {run.train_from or 'not given'}"
        if run.train_from == AUTO and run.reset_optim != "none":
            yield f"reset_optim must be none with train_from: {AUTO}, but is {run.reset_optim}"

    def lacking_base(self) -> Iterator[str]:
        """Sentences about what needs a trained model, for a run that begins with new weights: only its folder shows
        whether `train_from: auto` is one."""
        name = "init_from" if self.run.train_from == AUTO else "train_from"
        if self.lora.is_on:
            yield f"lora_layers and lora_embedding must have a trained model below them: name one with {name}"
        if self.expansion.is_on:
            yield f"expand_every and expand_blocks must have a trained model to expand: name it with {name}"
        if self.run.update_vocab and self.run.train_from is None:
            yield f"update_vocab must have a trained model whose vocabulary changes: name it with {name}"
        if self.architecture.decoder_layers < 1:
            yield "decoder_layers must be >= 1 to train a model, but is 0"


def _same_length(**lists: list[int] | list[float]) -> Iterator[str]:
    """Values that change together, and the steps at which they change, go in pairs."""
    if len({len(values) for values in lists.values()}) > 1:
        names, lengths = " and ".join(lists), ", ".join(str(len(values)) for values in lists.values())
        yield f"{names} must have the same length, but have {lengths}"
