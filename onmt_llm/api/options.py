"""Options given in Python: a YAML file, a dict or a configuration, and keywords that override them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onmt_llm.cli.run import CheckedJob, log_file, open_log
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.section import Section, set_options
from onmt_llm.errors import ConfigError

Config = str | Path | Mapping[str, Any] | Section | None
"""The path of a YAML file, options by name (flat or in sections), or a configuration that was loaded before."""


def load_options(job: CheckedJob, config: Config, options: Mapping[str, Any]) -> Loaded[Any]:
    """Load and check a job, and start its log file if the options name one.

    Args:
        job: The job.
        config: Options; None = defaults.
        options: Options that override them.

    Raises:
        OnmtLlmError: With all mistakes found, as the command reports them.
    """
    argv, values = [], {}
    if isinstance(config, str | Path):
        argv = [f"-config={config}"]
    elif isinstance(config, Section):
        values = set_options(config)
    elif isinstance(config, Mapping):
        values = dict(config)
    elif config is not None:
        raise ConfigError(
            f"The configuration must be the path of a YAML file, or a dict of options, but is {config!r:.60}."
        )
    loaded = job.load(argv, {**values, **options})
    if file := log_file(loaded):
        open_log(file)
    return loaded


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}
