"""What the commands that run a model share: the inference configuration, and the engine that it describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.checkpoint.directory import damage_ignored
from onmt_llm.cli.checks import inference_problems
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.run import log_notes
from onmt_llm.config.chat import ChatModelConfig, Mode
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.translate import EngineConfig
from onmt_llm.data.run_tokenizers import check_tokenizers
from onmt_llm.data.transforms.subword import SECTION as SUBWORD_SECTION
from onmt_llm.data.transforms.subword import SubwordConfig, named_specs
from onmt_llm.errors import ConfigError
from onmt_llm.generate.open import find_release, open_engine
from onmt_llm.log import logger

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine
    from onmt_llm.text.codec import Codec

_INTEGERS = ("int8", "int4")
"""Values of `precision` that are no type of torch."""


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
        _check_tokenizer(engine.codec, loaded)
        return engine.for_languages(inference.src_lang, inference.tgt_lang)


def _check_tokenizer(codec: Codec, loaded: Loaded[Any]) -> None:
    """Refuse a tokeniser in `transforms` that is not the model's, which is used whatever they list.

    Raises:
        ConfigError: It has another model, or the model splits texts at spaces.
        DataError: A tokeniser file cannot be read.
    """
    names, options = loaded.job.inference.transforms, loaded.options.get(SUBWORD_SECTION, SubwordConfig())
    assert isinstance(options, SubwordConfig)
    src_spec, tgt_spec = named_specs(names, options)
    for spec in dict.fromkeys(spec.file for spec in (src_spec, tgt_spec) if spec is not None and spec.file):
        if not Path(spec).is_file():
            logger.warning("%s is not there: the tokeniser of the model is used.", spec)
            return
    specs = (None, src_spec) if codec.config.model.is_decoder_only else (src_spec, tgt_spec)
    files = {file.name: file.read_bytes() for file in codec.files()}
    hint = "leave src_subword_model and tgt_subword_model out, or convert the model again with its -tokenizer_model"
    check_tokenizers(specs, codec.config, files, loaded.job.inference.model[0], hint=hint)


def open_models(models: Sequence[str], options: EngineConfig) -> Engine:
    """The engine for these models."""
    return open_engine(
        models,
        device=options.device,
        compute_type=options.precision if options.precision in _INTEGERS else options.compute_type,
        dtype=options.precision if options.precision not in ("", *_INTEGERS) else None,
        threads=options.threads,
        average_probabilities=options.avg_raw_probs,
        prefix_cache=options.prefix_cache,
        prompt_lookup=options.prompt_lookup,
        cuda_graphs=options.cuda_graphs,
    )
