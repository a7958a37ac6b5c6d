"""What the answers of `onmt_llm_translate` depend on, apart from its inputs: options, files that they name, models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.directory import STATE_PREFIX, read_manifest, resolve_path
from onmt_llm.checksums import fast_digest, fast_digest_of_file, sha256_of_sample
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.section import Section
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.data.transforms.transform import TRANSFORMS
from onmt_llm.generate.open import find_release

_INFERENCE = ("tgt_file_prefix", "transforms", "plugins", "template", "src_feats_defaults", "src_lang", "tgt_lang",
              "with_score", "phrase_table")  # fmt: skip
_ENGINE = ("precision", "compute_type", "avg_raw_probs")


def answer_origin(loaded: Loaded[Any]) -> dict[str, Any]:
    """By the names of options, what decides about the answers to an input; a file stands for its content.

    Batch sizes, devices and threads are not among them: answers do not depend on these.

    Raises:
        CheckpointError: There is no such model.
    """
    config: TranslateConfig = loaded.job
    found = {
        **_values(config.inference, _INFERENCE),
        **_values(config.engine, _ENGINE),
        **_values(config.generation),
        "tgt": "given" if config.inference.tgt else None,
        "model": [_model_content(path) for path in config.inference.model],
    }
    for name in config.inference.transforms:
        section = TRANSFORMS.get(name).section
        if section in loaded.options:
            found |= _values(loaded.options[section])
    return found


def _values(section: Section, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    values: Mapping[str, Any] = section.model_dump(mode="json")
    return {name: _content(values[name]) for name in names or values}


def _content(value: Any) -> Any:
    is_file = isinstance(value, str) and value and "\0" not in value and Path(value).is_file()
    return f"content {fast_digest_of_file(value)[:12]}" if is_file else value


def _model_content(path: str) -> str:
    """What identifies a model: the checksums in its manifest, or samples of its files if it has none."""
    directory = find_release(path) or resolve_path(path)
    manifest = read_manifest(directory)
    if manifest is not None:
        files = {name: entry.sha256 for name, entry in manifest.files.items() if not name.startswith(STATE_PREFIX)}
    else:
        files = {file.name: sha256_of_sample(file) for file in directory.iterdir() if file.is_file()}
    return f"content {fast_digest(json.dumps(sorted(files.items())).encode())[:12]}"
