"""The schema of each command's configuration, and `load_job`, which reads one.

A YAML file may serve several commands: a key of another command is noted, not refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, cast

from onmt_llm.cli.corpora import complete_corpora
from onmt_llm.config.loading.flags import CommandLine
from onmt_llm.config.loading.load import Checks, Loaded, load
from onmt_llm.config.loading.user_input import find_plugins
from onmt_llm.config.section import Section
from onmt_llm.data.transforms.build import sections
from onmt_llm.errors import ConfigError, Problem
from onmt_llm.registry import load_plugins


@dataclass(frozen=True)
class JobSchema:
    """The options of one command.

    Attributes:
        module: Module of `onmt_llm.config` that defines its configuration; imported on use, so a command does not load
            the options of all others.
        name: Name of the configuration's class there.
        extra: Gives the sections of the transforms, if the command runs transforms.
        short: One-letter flags, and the options that they set.
    """

    module: str
    name: str
    extra: Callable[[], Mapping[str, type[Section]]] = dict
    short: Mapping[str, str] = field(default_factory=dict)

    @property
    def section(self) -> type[Section]:
        """The type of the configuration, a section of sections."""
        return cast(type[Section], getattr(import_module(f"onmt_llm.config.{self.module}"), self.name))


JOBS = {
    "onmt_llm_train": JobSchema("train", "TrainConfig", sections),
    "onmt_llm_data": JobSchema("data_tool", "DataToolConfig", sections),
    "onmt_llm_launch": JobSchema("launch", "LaunchConfig", sections),
    "onmt_llm_build_vocab": JobSchema("build_vocab", "VocabConfig", sections),
    "onmt_llm_translate": JobSchema("translate", "TranslateConfig", sections),
    "onmt_llm_chat": JobSchema("chat", "ChatConfig"),
    "onmt_llm_serve": JobSchema("serve", "ServeConfig"),
    "simple_inference": JobSchema("chat", "SimpleInferenceConfig"),
    "onmt_llm_convert": JobSchema("convert", "ConvertConfig"),
    "onmt_llm_lora": JobSchema("lora_tool", "LoraToolConfig"),
    "onmt_llm_checkpoint": JobSchema(
        "checkpoint_tool", "CheckpointToolConfig", short={"m": "models", "o": "output", "f": "fp32"}
    ),
    "onmt_llm_hub": JobSchema("hub", "HubConfig"),
    "onmt_llm_eval": JobSchema("evaluate", "EvalConfig"),
    "onmt_llm_eval_run": JobSchema("evaluate", "RunEvalConfig", sections),
    "onmt_llm_plot": JobSchema("plot", "PlotConfig"),
    "release_model": JobSchema(
        "release", "ReleaseConfig", sections, short={"m": "model", "o": "output", "f": "format", "q": "quantization"}
    ),
}


def load_job(
    command: str,
    argv: Sequence[str],
    *,
    values: Mapping[str, Any] | None = None,
    switches: Mapping[str, str] | None = None,
    prog: str = "",
    checks: Checks | None = None,
) -> Loaded[Any]:
    """Load the configuration of a command (see `config.loading.load`), and the plugins that it names.

    Without `checks`, no file is looked at that the options name, and corpora stay as they are written.
    """
    job = JOBS[command]
    faults = list(_load_plugins(find_plugins(argv, values or {}))) if job.extra is sections else []

    def finish(loaded: Loaded[Any]) -> tuple[Loaded[Any], list[Problem]]:
        found = [replace(fault, where=loaded.where("plugins")) for fault in faults]
        if checks is None:
            return loaded, found
        loaded, problems = complete_corpora(loaded)
        problems += checks(replace(loaded, invalid=loaded.invalid | ({"plugins"} if faults else set())))
        return loaded, found + problems

    return load(
        job.section,
        argv,
        CommandLine(prog or command, switches or {}, job.short),
        values=values,
        extra=job.extra(),
        siblings=lambda: {name: other.section for name, other in JOBS.items() if name != command},
        finish=finish,
        plugin_missing=bool(faults),
    )


def _load_plugins(plugins: Iterable[str]) -> Iterator[Problem]:
    """Load the plugins with these names; yield a problem for each that fails."""
    for plugin in plugins:
        try:
            load_plugins([plugin])
        except ConfigError as error:
            yield Problem.of(error)
