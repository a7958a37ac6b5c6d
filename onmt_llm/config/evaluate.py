"""Options of `onmt_llm_eval`."""

from __future__ import annotations

from pydantic import Field, field_validator

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.numbers import Count, CountOrZero
from onmt_llm.config.section import Names, Section
from onmt_llm.config.train import TrainConfig
from onmt_llm.config.translate import EngineConfig


class MeasureConfig(Section):
    """Model, texts and output of the evaluation."""

    model: str | None = None
    """Checkpoint directory, adapter or CTranslate2 release. `score`: answers `src`, and its answers are scored."""
    models: list[str] = Field(default_factory=list)
    """`compare`: the two models. May be given without the flag."""
    src: str | None = None
    """Texts for a language model, or source sentences, one per line; `-` = standard input. `score` and `compare`: the
    inputs that a model answers."""
    tgt: str | None = None
    """Target sentences, one per line: measure their perplexity given `src`; `score` and `compare`: the references."""
    src_lang: str = ""
    """Language of `src`, by its code in a multilingual model; empty = the model's default."""
    tgt_lang: str = ""
    """Language of `tgt`, likewise."""
    template: str | None = None
    """`score` and `compare`: apply this chat template to every input, as one user message; `auto` = the checkpoint's;
    null = inputs are complete prompts."""
    output: str | None = None
    """File for the results. `perplexity`: the figures of each line (perplexity, log probability and number of tokens,
    tab-separated); `score` and `tasks`: JSON; `compare`: the HTML page."""


class ScoreConfig(Section):
    """Scores of answers (`score`)."""

    hyp: list[str] = Field(default_factory=list)
    """Files of answers, one per line: a system each. The first system is the baseline of the paired tests."""
    metrics: Names[str] = Field(default_factory=lambda: ["BLEU", "CHRF", "TER"])
    """Metrics: BLEU, CHRF, TER, ROUGE1, ROUGE2, ROUGEL, ROUGELSUM, EXACT_MATCH, COMET."""
    resamples: CountOrZero = 0
    """Number of bootstrap resamples (usually 1000) for 95% confidence intervals and, with several systems, for paired
    tests against the first one; 0 = none."""
    comet_model: str = "Unbabel/wmt22-comet-da"
    """COMET: folder of a downloaded model, its checkpoint (.ckpt), or the name of a model, which is downloaded."""

    @field_validator("metrics")
    @classmethod
    def _upper(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(name.upper() for name in names))


class HarnessConfig(Section):
    """Tasks of lm-evaluation-harness (`tasks`)."""

    tasks: Names[str] = Field(default_factory=list)
    """Names of tasks, separated by spaces or commas."""
    include_path: str | None = None
    """Folder with YAML files of further tasks."""
    mmlu: str | None = None
    """Folder with the CSV files of MMLU, `test/<subject>_test.csv` and `dev/<subject>_dev.csv`: the tasks
    `mmlu_<subject>` read them instead of downloading their data, and the task `mmlu` is all subjects of the folder."""
    num_fewshot: CountOrZero | None = None
    """Number of examples in each prompt; null = the task's own."""
    limit: Count | None = None
    """Documents of each task, from the first; null = all."""
    chat: bool = False
    """Put the prompts into the checkpoint's chat template."""
    save_model: str | None = None
    """Instead of `model`: evaluate the checkpoints of the run with this `save_model`; each result becomes
    `<checkpoint>_tasks.json` and a line of `<save_model>_results.jsonl`."""
    watch: CountOrZero = 0
    """With `save_model`: look for new checkpoints after this many seconds, until the run has ended; 0 = evaluate those
    that exist."""


class EvalConfig(Section):
    """Measure the quality of a model."""

    measure: MeasureConfig = MeasureConfig()
    scoring: ScoreConfig = ScoreConfig()
    harness: HarnessConfig = HarnessConfig()
    generation: GenerationConfig = GenerationConfig()
    engine: EngineConfig = EngineConfig()
    integrity: IntegrityConfig = IntegrityConfig()


class OfflineConfig(Section):
    """Validation of a run's checkpoints (`onmt_llm_eval run`)."""

    output: str | None = None
    """CSV file of the results: step, corpus, ppl, loss, tokens, weights. Existing rows are kept and not measured
    again."""
    watch: CountOrZero = 0
    """Look for new checkpoints after this many seconds, until the run has ended; 0 = measure those that exist."""


class RunEvalConfig(TrainConfig):
    """Measure the checkpoints of a run on its validation corpora, also while it trains; takes the YAML file of
    `onmt_llm_train`."""

    offline: OfflineConfig = OfflineConfig()
