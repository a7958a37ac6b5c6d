"""What the commands that run a model share: the inference configuration, and the engine that it describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onmt_llm.checkpoint.directory import damage_ignored
from onmt_llm.cli.checks import inference_problems
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.run import log_notes
from onmt_llm.config.chat import ChatModelConfig, Mode
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.translate import EngineConfig
from onmt_llm.errors import ConfigError
from onmt_llm.generate.open import find_release, open_engine

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine


def load_inference_config(options: ChatModelConfig) -> Loaded[Any]:
    """Read a translate YAML (`translate_opts_py.yaml`, `translate_opts_ct2.yaml`) or take defaults; check the model.

    Raises:
        ConfigError: The file is missing or wrong, names no model, or names a model of the other kind.
        CheckpointError: The model is an incomplete release.
    """
    path, mode = options.inference_config_file, options.inference_mode
    if not path and not options.model:
        raise ConfigError(
            "'model' or 'inference_config_file' must be given, but neither is.",
            hint="-model MODEL, or -inference_config_file translate_opts_py.yaml",
        )
    argv = (["-config", path] if path else []) + (["-model", options.model] if options.model else [])
    loaded = load_job("onmt_llm_translate", argv, prog="inference_config_file", checks=inference_problems)
    log_notes(loaded)
    models = loaded.job.inference.model
    if not models:
        raise ConfigError(f"'model' must name a checkpoint or a release, but {path} does not set it.")
    model = models[0]
    found = model_mode(model)
    if mode is not None and found != mode:
        kinds = {"py": "a checkpoint", "ct2": "a CTranslate2 release"}
        raise ConfigError(
            f"With inference_mode {mode} the model must be {kinds[mode]}, "
            f"but '{model}'{loaded.origin('model')} is not one.",
            hint=f"-inference_mode {found}, or another model",
        )
    return loaded


def model_mode(model: str) -> Mode:
    """`ct2` for a CTranslate2 release, `py` for anything else."""
    return "ct2" if find_release(model) else "py"


def open_configured_engine(loaded: Loaded[Any]) -> Engine:
    """The engine of a translate configuration that names a model."""
    with damage_ignored(loaded.job.integrity.ignore_damage):  # also where another command loaded the configuration
        inference = loaded.job.inference
        engine = open_models(inference.model, loaded.job.engine)
        return engine.for_languages(inference.src_lang, inference.tgt_lang)


def open_models(models: Sequence[str], options: EngineConfig) -> Engine:
    """The engine for these models."""
    return open_engine(
        models,
        device=options.device,
        compute_type="int8" if options.precision == "int8" else options.compute_type,
        dtype=options.precision if options.precision not in ("", "int8") else None,
        threads=options.threads,
        average_probabilities=options.avg_raw_probs,
        prefix_cache=options.prefix_cache,
        prompt_lookup=options.prompt_lookup,
    )
