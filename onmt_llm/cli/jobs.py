"""The jobs of all commands, side by side: what `-config` of each may hold.

A YAML file may serve several commands: a key that belongs to another one is noted, not refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onmt_llm.config.chat import ChatConfig, SimpleInferenceConfig
from onmt_llm.config.convert import CheckpointToolConfig, ConvertConfig, LoraToolConfig, ReleaseConfig
from onmt_llm.config.data_tool import DataToolConfig
from onmt_llm.config.evaluate import EvalConfig
from onmt_llm.config.load import Loaded, find_plugins, load
from onmt_llm.config.section import Section
from onmt_llm.config.train import TrainConfig
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.config.vocab import VocabJobConfig
from onmt_llm.data.transforms import sections
from onmt_llm.registry import load_plugins


@dataclass(frozen=True)
class Job:
    """One command's options.

    Attributes:
        kind: The section of sections.
        extra: Options of the transforms, where the command runs them.
        short: One-letter flags.
    """

    kind: type[Section]
    extra: Callable[[], Mapping[str, type[Section]]] = dict
    short: Mapping[str, str] = field(default_factory=dict)


JOBS = {
    "onmt_llm_train": Job(TrainConfig, sections),
    "onmt_llm_data": Job(DataToolConfig, sections),
    "onmt_llm_build_vocab": Job(VocabJobConfig, sections),
    "onmt_llm_translate": Job(TranslateConfig, sections),
    "onmt_llm_chat": Job(ChatConfig),
    "simple_inference": Job(SimpleInferenceConfig),
    "onmt_llm_convert": Job(ConvertConfig),
    "onmt_llm_lora": Job(LoraToolConfig),
    "onmt_llm_checkpoint": Job(CheckpointToolConfig, short={"m": "models", "o": "output", "f": "fp32"}),
    "onmt_llm_eval": Job(EvalConfig),
    "release_model": Job(ReleaseConfig, short={"m": "model", "o": "output", "f": "format", "q": "quantization"}),
}


def load_job(
    command: str, argv: Sequence[str], *, switches: Mapping[str, str] | None = None, prog: str = ""
) -> Loaded[Any]:
    """`config.load` with everything that it must know of the other commands."""
    job = JOBS[command]
    if job.extra is sections:
        load_plugins(find_plugins(argv))
    siblings = {name: other.kind for name, other in JOBS.items() if name != command}
    return load(
        job.kind, argv, prog=prog or command, extra=job.extra(), siblings=siblings, switches=switches, short=job.short
    )
