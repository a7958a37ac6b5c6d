"""How a model's answers are sampled by default: the settings of generation_config.json.

Exports keep them, and the server goes by them where its options say nothing. In other commands the options decide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onmt_llm.checkpoint.formats.tokenizer_files import read_json
from onmt_llm.config.checkpoint import SamplingDefaults
from onmt_llm.log import logger

GENERATION_FILE = "generation_config.json"


def read_sampling(model_dir: Path) -> SamplingDefaults:
    """The settings of a model; without the file, none."""
    file = model_dir / GENERATION_FILE
    found = read_json(file) if file.is_file() else {}
    values = {name: found[name] for name in SamplingDefaults.model_fields if found.get(name) is not None}
    try:
        return SamplingDefaults.model_validate(values)
    except ValidationError as error:
        logger.warning("The settings of sampling in %s are left out: %s.", file, error.errors()[0]["msg"])
        return SamplingDefaults()


def sampling_settings(sampling: SamplingDefaults) -> dict[str, Any]:
    """The settings as generation_config.json has them."""
    return sampling.model_dump(exclude_defaults=True)
