"""`TrainConfig`: all options of `onmt_llm_train`, and the checks across its sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import model_validator

from onmt_llm.config.data import BatchConfig, DataConfig, EmbeddingsConfig, VocabularyConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.section import Section
from onmt_llm.config.task import TaskDecision, decide_task, with_defaults
from onmt_llm.config.training.adapters import ExpansionConfig, LoraConfig, QuantizationConfig
from onmt_llm.config.training.loss import LossConfig, PreferenceConfig
from onmt_llm.config.training.optimizer import OptimConfig
from onmt_llm.config.training.performance import PerformanceConfig
from onmt_llm.config.training.regularization import RegularizationConfig
from onmt_llm.config.training.run import DeviceConfig, LoggingConfig, RunConfig
from onmt_llm.config.training.safety import SafetyConfig
from onmt_llm.config.training.start import AUTO, StartConfig
from onmt_llm.config.training.tracking import TrackingConfig
from onmt_llm.config.training.validation import ValidationConfig


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
            dropout=dropout.dropout,
            attention_dropout=dropout.attention_dropout,
            dropout_steps=dropout.dropout_steps,
        )
        if start.init_from and start.train_from != AUTO:
            yield f"init_from must go with train_from: {AUTO}, but that is {start.train_from or 'not given'}"
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
