"""`TrainConfig`: all options of `onmt_llm_train`, and the checks across its sections.

The sections that say how a run goes are here: its start, length, devices, log and checkpoints. `learning` has those
of what is trained, and how; `data` and `model` those of the data and the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from onmt_llm.config.data import BatchConfig, DataConfig, EmbeddingsConfig, VocabularyConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.learning import (
    TO_THE_END,
    ExpansionConfig,
    LoraConfig,
    LossConfig,
    ObjectiveName,
    OptimConfig,
    PerformanceConfig,
    PreferenceConfig,
    QuantizationConfig,
    RegularizationConfig,
    ValidationConfig,
)
from onmt_llm.config.model import ModelConfig, Task
from onmt_llm.config.numbers import INT32, Count, CountOrAll, CountOrZero, Positive, Seed, WorkersOrZero, size_in_bytes
from onmt_llm.config.section import Section
from onmt_llm.config.task import TaskDecision, decide_task, with_defaults
from onmt_llm.output_checks import name_problem

if TYPE_CHECKING:
    from typing_extensions import Self

AUTO = "auto"
"""Value of `train_from`: resume from the newest checkpoint of this run."""


class StartConfig(Section):
    """The checkpoint that the run starts from, or how new weights are initialised."""

    train_from: str | None = None
    """Checkpoint to start from: resume the run if it holds a training state, else fine-tune it. `auto` = the newest
    checkpoint of this run (`save_model`), or `init_from` if there is none yet."""
    init_from: str | None = None
    """`train_from: auto`: checkpoint that a new run starts from, at step 0; null = new weights."""
    model_task: Task | None = None
    """Language model or translation; null = the task of `train_from`. Without `train_from`: translation if
    `encoder_layers` is above 0, a corpus has a `path_tgt`, or `tgt_vocab` is set; else a language model."""
    model_defaults: Literal["onmt_llm", "opennmt"] = "onmt_llm"
    """Defaults for the architecture of a new model. `opennmt` (implied by `encoder_type` and `decoder_type`): 2 layers,
    and a bias on the output layer of language models too."""
    update_vocab: bool = False
    """Fine-tune `train_from` with the vocabulary of `src_vocab` and `tgt_vocab`; known tokens keep their embeddings."""
    override_opts: bool = False
    """Architecture options that are set replace those of `train_from`; options that are not set never do."""
    reset_optim: Literal["none", "all", "states", "keep_states"] = "none"
    """When resuming, reset: nothing, the optimiser state and the step (`all`), the optimiser state only (`states`), or
    the learning-rate settings only (`keep_states`)."""
    param_init: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Initialise a new model's weights uniformly in [-param_init, param_init]; 0 = the default of `nn.init`."""
    param_init_glorot: bool = False
    """Initialise a new model's matrices with Xavier uniform (Glorot and Bengio 2010)."""


class RunConfig(Section):
    """Length, gradient accumulation, checkpoints and seed of a run."""

    save_model: str = "model"
    """Prefix of the checkpoints: `<save_model>_step_<N>`."""
    train_steps: Count = 100000
    """Total optimiser steps, including those before a resume."""
    accum_count: list[Annotated[int, Field(ge=1, le=10**5)]] = Field(default_factory=lambda: [1])
    """Gradient accumulation: micro-batches per step; several values follow each other at `accum_steps`."""
    accum_steps: list[CountOrZero] = Field(default_factory=lambda: [0])
    """Steps at which the next value of `accum_count` takes effect."""
    global_batch_size: CountOrZero = 0
    """Size of an update over all micro-batches and processes, in the unit of `batch_size`; `accum_count` follows from
    it. 0 = `accum_count` says it."""
    max_tokens: Annotated[int, Field(ge=0, le=10**15)] = 0
    """Tokens to train on, with `packing`, padding included; `train_steps`, and so the schedule, follows from it. 0 =
    `train_steps` says it."""
    normalization: Literal["tokens", "sents"] = "tokens"
    """Divide the summed loss of a step by its target tokens (`tokens`) or by its examples (`sents`)."""
    save_checkpoint_steps: Count = 5000
    """Steps between two checkpoints."""
    keep_checkpoint: CountOrAll = -1
    """Number of checkpoints to keep on disk; -1 = all, 0 = save none."""
    valid_steps: Count = 10000
    """Steps between two validations."""
    freeze_encoder: bool = False
    """Freeze the layers of the encoder, but not its embeddings."""
    freeze_decoder: bool = False
    """Freeze the layers of the decoder, but not its embeddings or the output layer."""
    seed: Seed = -1
    """Seed of initialisation, dropout and data order; -1 = a random one, which is logged."""
    threads: WorkersOrZero = 0
    """CPU threads; 0 = torch's default."""

    @field_validator("save_model")
    @classmethod
    def _prefix(cls, prefix: str) -> str:
        name = prefix.rpartition("/")[2]
        if problem := name_problem(name):
            reason = problem if name.strip(".") else f"is '{prefix}'"
            raise ValueError(f"must end in a name that checkpoints can begin with, as in run/model, but {reason}")
        return prefix


class DeviceConfig(Section):
    """Device and number of processes."""

    world_size: CountOrZero = 1
    """Total number of processes; start more than one with torchrun. 0 = CPU."""
    gpu_ranks: list[CountOrZero] = Field(default_factory=list)
    """OpenNMT-py's list of GPU ranks; accepted, but a GPU is used whenever there is one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; `auto` = CUDA if available."""
    shard: Literal["off", "auto", "full"] = "off"
    """With several processes: `full` = shard weights, gradients and optimiser among them (FSDP2); `off` = each process
    holds all of them; `auto` = `full` if all of them are estimated not to fit into the memory of a process, else `off`.
    """
    shard_size: CountOrZero = 0
    """With `shard: full`: number of processes that share one copy of the weights; each such group has a copy of its
    own (HSDP). 0 = all. With `tensor_parallel`: counted in groups of processes."""
    tensor_parallel: Count = 1
    """Number of processes that compute each block together, each with a part of the heads and of the feed-forward layer
    (tensor parallel). They are neighbours, so should be on one machine, and read the same data."""
    collective_timeout: Annotated[float, Field(ge=0, le=INT32)] = 600.0
    """With several processes: seconds for which the others wait for one that has stopped or is behind; it is named in
    the log, and then the run ends. Validating and saving may take longer. 0 = they wait until torch gives up (2 hours).
    """


class LoggingConfig(Section):
    """Progress, metrics and log files."""

    report_every: Count = 50
    """Steps between two progress reports."""
    tensorboard: bool = False
    """Write TensorBoard events."""
    tensorboard_log_dir: str = "runs/onmt_llm"
    """Folder of the TensorBoard events; each run gets a subfolder named after its start time."""
    metrics_file: str | None = None
    """JSON lines file for the metrics of every report; null = `<save_model>_metrics.jsonl`."""
    log_file: str | None = None
    """File that receives a copy of the log."""
    progress: Literal["auto", "bar", "line", "none"] = "auto"
    """Show progress as a bar or as log lines; `auto` = a bar if stderr is a terminal, else lines."""
    verbose: bool = False
    """Log more detail."""


_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+):(\d\d)")
_SECONDS = (86400.0, 3600.0, 60.0, 1.0)


def seconds(text: str) -> float:
    """Seconds in `90`, `45m`, `11h30m`, `2d`, `23:30:00`.

    Raises:
        ValueError: The text is none of these, or the time is not positive.
    """
    match = _CLOCK.fullmatch(text.strip()) or _UNITS.fullmatch(text.strip().replace(" ", ""))
    total = sum(float(part or 0) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True)) if match else 0.0
    if total <= 0:
        raise ValueError(f"must be a time such as 11h30m, 23:30:00 or 3600 (seconds), but is '{text}'")
    return total


class SafetyConfig(Section):
    """How checkpoints are saved, what is done by the clock, and loss spikes."""

    save_async: bool = True
    """Copy the state to main memory and write it in the background; without memory for the copy, training waits."""
    checkpoint_shards: Literal["auto", "off", "on"] = "auto"
    """With sharded weights (`shard`): `on` = each process writes the part of a checkpoint that it holds; `off` = the
    main process collects all of it in its memory and writes it; `auto` = `on` if the weights take more than
    `checkpoint_shards_above`. Adapters are always collected."""
    checkpoint_shards_above: str = "10GB"
    """`checkpoint_shards: auto`: size of the weights above which each process writes its own part."""
    save_best: bool = False
    """Save a checkpoint after each validation that is the best so far (by `early_stopping_criteria`), and never delete
    the best one."""
    max_time: str | None = None
    """Save and stop after this time since the start of the command: `11h30m`, `23:30:00`, or seconds."""
    save_checkpoint_time: str | None = None
    """Also save a checkpoint whenever this time has passed: `30m`, `1h`, or seconds."""
    valid_time: str | None = None
    """Also validate whenever this time has passed: `30m`, `1h`, or seconds."""
    spike_action: Literal["none", "warn", "rollback"] = "none"
    """On a loss spike: do nothing, warn, or roll back to the last checkpoint and skip the data since."""
    spike_threshold: Positive = 6.0
    """A loss spike is this many standard deviations above the mean loss of the last `spike_window` steps."""
    spike_window: Annotated[int, Field(ge=10, le=INT32)] = 100
    """Number of preceding steps that a loss is compared with; detection starts after half as many."""

    @field_validator("checkpoint_shards_above")
    @classmethod
    def _size(cls, value: str) -> str:
        size_in_bytes(value)
        return value

    @field_validator("max_time", "save_checkpoint_time", "valid_time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        if value is None:
            return None
        text = str(value)
        seconds(text)
        return text

    @property
    def whole_bytes(self) -> int:
        """`checkpoint_shards_above` in bytes."""
        return size_in_bytes(self.checkpoint_shards_above)

    @property
    def max_seconds(self) -> float | None:
        return None if self.max_time is None else seconds(self.max_time)

    @property
    def save_seconds(self) -> float | None:
        return None if self.save_checkpoint_time is None else seconds(self.save_checkpoint_time)

    @property
    def valid_seconds(self) -> float | None:
        return None if self.valid_time is None else seconds(self.valid_time)


class TrackingConfig(Section):
    """Experiment trackers (W&B, MLflow), MFU and the profiler."""

    wandb: bool = False
    """Also log to Weights & Biases, which is configured by its environment variables (`WANDB_MODE=offline` ...)."""
    mlflow: bool = False
    """Also log to MLflow, at `MLFLOW_TRACKING_URI`."""
    tracking_project: str = "onmt_llm"
    """Project in W&B, experiment in MLflow; the run is named after `save_model`."""
    measure_flops: bool = False
    """Measure the peak speed of matrix products at the start, and report the share that training reaches (`mfu`)."""
    profile_steps: list[Count] = Field(default_factory=list)
    """First and last step to profile, e.g. `[10, 13]`; writes a Chrome trace and a table to `<save_model>_profile`."""
    profile_flops: bool = False
    """Also count the floating-point operations of the steps in `profile_steps`, by kind."""

    @model_validator(mode="after")
    def _check(self) -> TrackingConfig:
        steps = self.profile_steps
        if steps and (len(steps) != 2 or steps[0] > steps[1]):
            raise ValueError(f"profile_steps must be a first and a last step, but is {steps}")
        if self.profile_flops and not steps:
            raise ValueError("profile_flops needs profile_steps, but that is empty: set it, or remove profile_flops")
        return self


class TrainConfig(Section):
    """All options of `onmt_llm_train`."""

    corpora: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    batching: BatchConfig = BatchConfig()
    architecture: ModelConfig = ModelConfig()
    start: StartConfig = StartConfig()
    lora: LoraConfig = LoraConfig()
    expansion: ExpansionConfig = ExpansionConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    optimizer: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    preference: PreferenceConfig = PreferenceConfig()
    validation: ValidationConfig = ValidationConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    performance: PerformanceConfig = PerformanceConfig()
    run: RunConfig = RunConfig()
    safety: SafetyConfig = SafetyConfig()
    logging: LoggingConfig = LoggingConfig()
    watching: TrackingConfig = TrackingConfig()
    devices: DeviceConfig = DeviceConfig()
    integrity: IntegrityConfig = IntegrityConfig()

    @property
    def has_new_model(self) -> bool:
        """Whether the run starts from new weights (or resumes a run that did)."""
        return (self.start.init_from if self.start.train_from == AUTO else self.start.train_from) is None

    def decide_task(self) -> TaskDecision:
        """Decide the task of a new model.

        Raises:
            ValueError: The options contradict each other, or leave the task open.
        """
        written = self.architecture.model_fields_set
        layers = self.architecture.encoder_layers if "encoder_layers" in written else None
        return decide_task(self.start.model_task, layers, self.corpora.data, self.vocabulary.tgt_vocab)

    def resolved(self) -> Self:
        """The same options with the task and the complete architecture of the new model, if there is one."""
        if not self.has_new_model:
            return self
        task = self.decide_task().task
        architecture = with_defaults(self.architecture, task, family=self.start.model_defaults)
        start = self.start.model_copy(update={"model_task": task})
        return self.model_copy(update={"architecture": architecture, "start": start})

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if found := list(self._conflicts()):
            raise ValueError("\n".join(found))
        return self

    def _conflicts(self) -> Iterator[str]:
        """A sentence for each conflict between options of different sections."""
        start, run, dropout = self.start, self.run, self.regularization
        if self.has_new_model:
            try:
                self.decide_task()
            except ValueError as error:
                yield str(error)
        extra = {
            "label_smoothing": self.optimizer.label_smoothing,
            **self.loss.terms,
            "expand_divergence": self.expansion.expand_divergence,
        }
        named = [name for name, value in extra.items() if value]
        if self.corpora.objective != "sft" and named:
            yield f"{' and '.join(named)} must be left out with objective: {self.corpora.objective}"
        if self.corpora.objective == "sft" and "reward_accuracy" in self.validation.early_stopping_criteria:
            *others, last = (name for name in get_args(ObjectiveName) if name != "sft")
            yield f"early_stopping_criteria reward_accuracy needs objective: {', '.join(others)} or {last}"
        if self.expansion.is_on and self.lora.is_on:
            yield "expand_every and expand_blocks must be left out with LoRA (lora_layers, lora_embedding)"
        yield from _same_length(accum_count=run.accum_count, accum_steps=run.accum_steps)
        yield from _increasing(accum_steps=run.accum_steps, dropout_steps=dropout.dropout_steps)
        written = run.model_fields_set
        for option, derived in (("global_batch_size", "accum_count"), ("max_tokens", "train_steps")):
            if getattr(run, option) and derived in written:
                yield f"{derived} must be left out with {option}, from which it follows"
        decay = self.optimizer.decay_method
        if self.corpora.epochs and decay in TO_THE_END and not run.max_tokens and "train_steps" not in written:
            yield f"train_steps must be set with epochs and decay_method: {decay}, whose learning rate falls until then"
        if run.max_tokens and self.batching.packing == "off":
            yield "max_tokens needs packing, where the tokens of an update are known, but packing is off"
        yield from _same_length(
            dropout=dropout.dropout,
            attention_dropout=dropout.attention_dropout,
            dropout_steps=dropout.dropout_steps,
        )
        if start.init_from and start.train_from != AUTO:
            yield f"init_from needs train_from: {AUTO}, but that is {start.train_from or 'not given'}"
        if start.train_from == AUTO and start.reset_optim != "none":
            yield f"reset_optim must be none with train_from: {AUTO}, but is {start.reset_optim}"

    def missing_base(self) -> Iterator[str]:
        """A sentence for each option that needs a trained model. Call it only for a run that starts from new weights;
        with `train_from: auto`, that depends on the checkpoints in its folder."""
        name = "init_from" if self.start.train_from == AUTO else "train_from"
        if self.lora.is_on:
            yield f"lora_layers and lora_embedding must have a trained model as their base: set {name}"
        if self.expansion.is_on:
            yield f"expand_every and expand_blocks must have a trained model to expand: set {name}"
        if self.start.update_vocab and self.start.train_from is None:
            yield f"update_vocab must have a trained model whose vocabulary changes: set {name}"
        if self.architecture.decoder_layers < 1:
            yield "decoder_layers must be >= 1 to train a model, but is 0"


def _same_length(**lists: list[int] | list[float]) -> Iterator[str]:
    """A sentence if lists that belong together differ in length."""
    if len({len(values) for values in lists.values()}) > 1:
        names, lengths = " and ".join(lists), ", ".join(str(len(values)) for values in lists.values())
        yield f"{names} must have the same length, but have {lengths}"


def _increasing(**lists: list[int]) -> Iterator[str]:
    """A sentence for each list of steps that does not increase, of which some would never take effect."""
    for name, steps in lists.items():
        if steps != sorted(set(steps)):
            yield f"{name} must increase, but is {steps}"
