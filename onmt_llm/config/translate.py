"""Options of `onmt_llm_translate`, the chat app and `simple_inference`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.numbers import Count, CountOrZero, WorkersOrZero
from onmt_llm.config.section import Section


class InferenceConfig(Section):
    """The model, what it reads and what it writes."""

    model: list[str] = Field(default_factory=list)
    """Checkpoint directory, or CTranslate2 release: the files inside decide which engine runs. Several checkpoints
    answer together, as an ensemble."""
    src: str | None = None
    """Input, one a line; `-` = standard input."""
    tgt: str | None = None
    """Reference answers, one a line, to be scored; or what answers begin with, see `tgt_file_prefix`."""
    tgt_file_prefix: bool = False
    """Every answer begins with its line of `tgt`."""
    output: str = "pred.txt"
    """Answers, one a line in input order; `-` = standard output."""
    transforms: list[str] = Field(default_factory=list)
    """OpenNMT-py lists the tokeniser here; empty = what the checkpoint holds."""
    plugins: list[str] = Field(default_factory=list)
    """Python modules, or paths of .py files, that are loaded first: they may register transforms of their own."""
    template: str | None = None
    """Wrap every input as one user turn of this chat template; `auto` = the checkpoint's; null = inputs are prompts."""
    n_src_feats: Annotated[int, Field(ge=0, le=256)] | None = None
    """Accepted; the checkpoint knows how many features its source words carry."""
    src_feats_defaults: str | None = None
    """Features of the words of a line that has none, `value￨value`; null = the checkpoint's."""
    with_score: bool = False
    """Append each answer's score after a tab, and after another that of the reference (`tgt`)."""
    phrase_table: str | None = None
    """With `replace_unk`: file of `source|||target` lines that says what a source token becomes."""
    model_task: Literal["lm", "seq2seq"] | None = None
    """Accepted; the checkpoint knows what it is."""


class EngineConfig(Section):
    """Where and how the model runs."""

    batch_size: Count = 16
    """Inputs (`sents`) or tokens (`tokens`) decoded together; answers do not depend on it."""
    batch_type: Literal["sents", "tokens"] = "sents"
    """What `batch_size` counts."""
    precision: Literal["", "fp32", "bf16", "fp16", "int8"] = ""
    """Type of the weights in the torch engine; empty = as stored (float16 becomes float32 on a CPU)."""
    compute_type: str = "auto"
    """CTranslate2's compute type; `auto` = the fastest one that the release and the processor allow."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` = CUDA where it is available."""
    world_size: CountOrZero = 1
    """OpenNMT-py's number of processes; one process serves the model here."""
    gpu_ranks: list[CountOrZero] = Field(default_factory=list)
    """OpenNMT-py's list of GPU ranks; a GPU is used where there is one."""
    threads: WorkersOrZero = 0
    """CPU threads; 0 = one per core."""
    avg_raw_probs: bool = False
    """An ensemble averages its models' probabilities, not their logarithms."""
    log_file: str | None = None
    """Copy of the log."""
    verbose: bool = False
    """Log every input and its answers."""


class TranslateConfig(Section):
    """Everything that the inference commands can be told."""

    inference: InferenceConfig = InferenceConfig()
    generation: GenerationConfig = GenerationConfig()
    engine: EngineConfig = EngineConfig()
    integrity: IntegrityConfig = IntegrityConfig()

    @model_validator(mode="after")
    def _check(self) -> TranslateConfig:
        search = self.generation
        if search.n_best > search.beam_size and not search.samples:
            raise ValueError(
                f"n_best must be <= beam_size unless answers are sampled, but is {search.n_best} "
                f"with beam_size {search.beam_size}"
            )
        return self
