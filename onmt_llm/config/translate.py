"""Options of `onmt_llm_translate`; the YAML files of the chat page and `simple_inference` use them too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.numbers import Count, CountOrZero, WorkersOrZero
from onmt_llm.config.section import Names, Section


class InferenceConfig(Section):
    """Model, input and output."""

    model: list[str] = Field(default_factory=list)
    """Checkpoint directory or CTranslate2 release; the engine follows from its files. Several checkpoints form an
    ensemble."""
    src: str | None = None
    """Input file, one input per line; `-` = standard input."""
    tgt: str | None = None
    """Reference answers to score, one per line; or, with `tgt_file_prefix`, target prefixes."""
    tgt_file_prefix: bool = False
    """Start each answer with its line of `tgt`, or without it with the `tgt_prefix` of the transform `prefix`."""
    output: str = "pred.txt"
    """Output file, one answer per line in input order; `-` = standard output. It grows as `OUTPUT.partial`, and has its
    own name when it is complete."""
    resume: bool = True
    """Resume where the same command was interrupted; false = answer all lines again."""
    transforms: Names[str] = Field(default_factory=list)
    """Accepted for OpenNMT-py, which lists the tokeniser here; empty = the checkpoint's tokeniser."""
    plugins: list[str] = Field(default_factory=list)
    """Python modules, or paths of .py files, to import first; they may register their own transforms."""
    template: str | None = None
    """Apply this chat template to every input, as one user message; `auto` = the checkpoint's; null = inputs are
    complete prompts."""
    n_src_feats: Annotated[int, Field(ge=0, le=256)] | None = None
    """Accepted without effect: the number of features per source word is stored in the checkpoint."""
    src_feats_defaults: str | None = None
    """Features for the words of lines without features, `value￨value`; null = the checkpoint's."""
    src_lang: str = ""
    """Language of the inputs, by its code in a multilingual model (`eng_Latn`, `en_XX`, `en`); empty = the model's
    default. The transform `normalize` has rules for some languages."""
    tgt_lang: str = ""
    """Language to translate into, likewise."""
    with_score: bool = False
    """Append the score of each answer, tab-separated, and then that of the reference (`tgt`)."""
    phrase_table: str | None = None
    """With `replace_unk`: file of `source|||target` lines that maps source tokens to target tokens."""
    model_task: Literal["lm", "seq2seq"] | None = None
    """Accepted without effect: the task is stored in the checkpoint."""


class EngineConfig(Section):
    """Device, precision and batching of inference."""

    batch_size: Count = 16
    """Batch size in inputs (`sents`) or tokens (`tokens`); answers do not depend on it."""
    batch_type: Literal["sents", "tokens"] = "sents"
    """Unit of `batch_size`."""
    precision: Literal["", "fp32", "bf16", "fp16", "int8", "int4"] = ""
    """Weight type of the torch engine; empty = as stored (float16 becomes float32 on a CPU). `int8` rounds all
    matrices, the output layer's included; `int4` those inside the layers, on CPUs with instructions for bf16. On x86
    CPUs `int8` computes in float32, and so do types of 16 bits that the CPU has no instructions for."""
    compute_type: str = "auto"
    """Compute type of CTranslate2; `auto` = the fastest that the release and the processor support."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; `auto` = CUDA if available."""
    world_size: CountOrZero = 1
    """OpenNMT-py's number of processes; accepted, but one process serves the model."""
    gpu_ranks: list[CountOrZero] = Field(default_factory=list)
    """OpenNMT-py's list of GPU ranks; accepted, but a GPU is used whenever there is one."""
    threads: WorkersOrZero = 0
    """CPU threads; 0 = one per core."""
    avg_raw_probs: bool = False
    """Ensembles: average the probabilities of the models instead of their logarithms."""
    prefix_cache: CountOrZero = 256
    """Memory in MiB for the keys and values of earlier prompts and answers, so that the next turn of a chat does not
    read the conversation again; 0 = none. For decoder-only models, with the torch engine."""
    prompt_lookup: bool = True
    """Where one answer is computed at a time, guess its next tokens from what followed the same words earlier, and
    verify several in one pass; the answer stays the same. For decoder-only models, with the torch engine."""
    cuda_graphs: bool = False
    """On a GPU, replay the steps of an answer as CUDA graphs once the rows of a batch stay the same for a few tokens.
    For decoder-only models without experts, with the torch engine."""
    log_file: str | None = None
    """File that receives a copy of the log."""
    verbose: bool = False
    """Log every input with its answers."""


class TranslateConfig(Section):
    """All options of the inference commands."""

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
