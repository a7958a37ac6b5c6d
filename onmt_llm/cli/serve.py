"""`onmt_llm_serve`: serve models over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.cli.checks import template_problems
from onmt_llm.cli.inference import open_models
from onmt_llm.cli.inputs import model_config, model_problems
from onmt_llm.cli.outputs import Output, Paths
from onmt_llm.cli.run import CheckedJob, run_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.serve import ServeConfig, ServedModelConfig
from onmt_llm.errors import OnmtLlmError, Problem
from onmt_llm.optional import require
from onmt_llm.text.language_tags import offered_languages

if TYPE_CHECKING:
    from fastapi import FastAPI

    from onmt_llm.serve.app import ServerSettings
    from onmt_llm.serve.models import ModelSpec

USAGE = "onmt_llm_serve -config serve.yaml, or onmt_llm_serve -model MODEL"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    return run_job(_JOB, partial(_serve, words), words)


def _paths(loaded: Loaded[Any]) -> Paths:
    log = loaded.job.listening.access_log
    return Paths(writes=[Output("access_log", log)] if log else [])


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    models = _models(loaded.job)
    if not models and not {"models", "model"} & loaded.invalid:
        yield Problem("'models' or 'model' must be given, but neither is.", hint=USAGE)
    for name, served in models.items():
        place = ("models", name) if name in loaded.job.serving.models else ("model",)
        yield from model_problems(served.model, ".".join(place), loaded.where(*place), releases=True)
        yield from _tokenizer_problems(served, ".".join(place), loaded.where(*place))
        if served.template != "auto":
            yield from template_problems(loaded, served.template, (*place, "template"))


def _tokenizer_problems(served: ServedModelConfig, option: str, where: str) -> Iterator[Problem]:
    """The model must have a tokeniser of the kind that the configuration of another server names."""
    if served.expected_tokenizer is None:
        return
    try:
        found = model_config(served.model).tokenizer
    except OnmtLlmError:
        return  # `model_problems` reports that
    if found.kind != served.expected_tokenizer:
        sentence = (
            f"{option}: the tokeniser of {served.model} must be of kind {served.expected_tokenizer}, but is of kind "
            f"{found.kind}."
        )
        yield Problem(sentence, where, "convert the model with its tokeniser: onmt_llm_convert -tokenizer_model FILE")


_JOB = CheckedJob("onmt_llm_serve", _paths, _problems)


def _models(config: ServeConfig) -> dict[str, ServedModelConfig]:
    """The models by name, with the one that `model` names."""
    single = config.serving.model
    named = {Path(single).resolve().name: ServedModelConfig(model=single)} if single else {}
    return {**named, **config.serving.models}


def _serve(words: Sequence[str], loaded: Loaded[Any]) -> int:
    config: ServeConfig = loaded.job
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "onmt_llm_serve", "onmt_llm[serve]")
    from onmt_llm.serve.app import ServerState, build_app
    from onmt_llm.serve.launch import launch, open_port
    from onmt_llm.serve.models import ModelPool

    settings, limits = _settings(config), config.limits
    listener = open_port(config.listening.host, config.listening.port)
    idle_seconds = config.serving.idle_unload_seconds
    models = ModelPool(build_specs(config), max_queue=limits.max_queue, idle_seconds=idle_seconds)
    state = ServerState()

    def reload() -> list[str]:
        """Read the configuration again, for the models; everything else stays as it was at the start."""
        return models.reload(build_specs(_JOB.load(words).job))

    app = build_app(models, settings, state=state, reload=reload)
    launch(app, listener, models=models, state=state, drain_seconds=limits.drain_seconds, reload=reload)
    return 0


def open_app(config_file: str) -> FastAPI:
    """The app for a configuration file, with its models loaded, to be run by another ASGI server than ours.

    Address and port of the file have no effect.

    Raises:
        OnmtLlmError: The configuration is wrong, or a model cannot be loaded.
    """
    from onmt_llm.serve.app import build_app
    from onmt_llm.serve.models import ModelPool

    config: ServeConfig = _JOB.load(["-config", config_file]).job
    limits, idle_seconds = config.limits, config.serving.idle_unload_seconds
    models = ModelPool(build_specs(config), max_queue=limits.max_queue, idle_seconds=idle_seconds)
    models.load_all()
    return build_app(models, _settings(config))


def _settings(config: ServeConfig) -> ServerSettings:
    from onmt_llm.serve.app import ServerSettings
    from onmt_llm.serve.keys import read_keys
    from onmt_llm.serve.records import open_access_log
    from onmt_llm.serve.service import Limits

    listening, limits = config.listening, config.limits
    return ServerSettings(
        limits=Limits(
            body_bytes=limits.max_body_bytes,
            n=limits.max_n,
            answer_tokens=limits.max_answer_tokens,
            queue=limits.max_queue,
            seconds=limits.max_seconds or None,
        ),
        keys=read_keys("api_keys_file", listening.api_keys_file, "ONMT_LLM_API_KEYS"),
        admin_keys=read_keys("admin_keys_file", listening.admin_keys_file, "ONMT_LLM_ADMIN_KEYS"),
        cors_origins=listening.cors_origins,
        write_record=open_access_log(listening.access_log),
        url_root=listening.url_root,
    )


def build_specs(config: ServeConfig) -> list[ModelSpec]:
    """What the server offers, in the order of the configuration."""
    return [_spec(name, served) for name, served in _models(config).items()]


def _spec(name: str, served: ServedModelConfig) -> ModelSpec:
    from onmt_llm.serve.models import ModelSpec

    src, tgt = served.src_lang, served.tgt_lang
    sources, targets = offered_languages(model_config(served.model), src=src, tgt=tgt)
    return ModelSpec(
        name,
        partial(open_models, [served.model], served.engine),
        template=None if served.template == "auto" else served.template,
        src_lang=src,
        tgt_lang=tgt,
        max_context_length=served.max_context_length,
        drop_old_rounds=served.drop_old_rounds,
        generation=served.generation,
        load_at_start=served.load_at_start,
        idle_seconds=served.idle_unload_seconds,
        device=served.engine.device,
        tgt_file_prefix=served.tgt_file_prefix,
        sources=sources,
        targets=targets,
    )


if __name__ == "__main__":
    raise SystemExit(main())
