"""`onmt_llm_chat` (also `python chatbot/chatbot.py`): chat with a model in the browser, or translate with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.cli.inference import load_inference_config, model_mode, open_configured_engine
from onmt_llm.cli.outputs import Paths
from onmt_llm.cli.run import CheckedJob, run_job
from onmt_llm.config.chat import ChatConfig, ServerConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.errors import ConfigError

if TYPE_CHECKING:
    from onmt_llm.chat.model import ChatModel
    from onmt_llm.generate.scheduling.scheduler import Scheduler


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(CheckedJob("onmt_llm_chat", lambda loaded: Paths()), _chat, argv)


def _chat(loaded: Loaded[Any]) -> int:
    config: ChatConfig = loaded.job
    server = config.server
    models = [load_inference_config(config.answering)]
    if server.compare_model:
        other = {"model": server.compare_model, "inference_mode": None}
        models.append(load_inference_config(config.answering.model_copy(update=other)))
    # check that the page can be served before spending minutes on loading a model
    from onmt_llm.chat.launch import check_server, launch, read_users

    users = read_users(server.users_file)
    check_server(server.server_name, server.server_port, has_password=bool(users))
    with ExitStack() as opened:
        schedulers = [_open(inference, server, opened) for inference in models]
        can_chat = all(scheduler.codec.config.model.is_decoder_only for scheduler in schedulers)
        build = _chat_page if can_chat else _translator_page
        app = build(models, schedulers, server)
        launch(app, server_name=server.server_name, server_port=server.server_port, users=users)
    return 0


def _open(inference: Loaded[Any], server: ServerConfig, opened: ExitStack) -> Scheduler:
    """The scheduler of a configuration's model, which is closed with `opened`."""
    from onmt_llm.generate.scheduling.scheduler import Scheduler

    scheduler = Scheduler(open_configured_engine(inference), max_queue=server.max_queue)
    opened.callback(scheduler.close, drain=False)
    return scheduler


def _chat_page(models: Sequence[Loaded[Any]], schedulers: Sequence[Scheduler], server: ServerConfig) -> Any:
    from onmt_llm.chat.page import build_app

    responders = [_responder(*pair, server) for pair in zip(models, schedulers, strict=True)]
    names = [responder.name for responder in responders]
    title = f"Chat with {names[0]}" if len(names) == 1 else f"{names[0]} and {names[1]}"
    subtitle = f"{_engines(models)}, with a context of at most {server.max_context_length:,} tokens."
    return build_app(responders, title=title, subtitle=subtitle, system=server.system_prompt)


def _translator_page(models: Sequence[Loaded[Any]], schedulers: Sequence[Scheduler], server: ServerConfig) -> Any:
    """The page for an encoder-decoder.

    Raises:
        ConfigError: There is another model beside it.
    """
    from onmt_llm.chat.translation_model import TranslationModel
    from onmt_llm.chat.translator_page import build_translator

    if server.compare_model:
        raise ConfigError("'compare_model' must not be given for a model that translates, but is.")
    job: TranslateConfig = models[0].job
    pair = job.inference.src_lang, job.inference.tgt_lang
    model = TranslationModel(schedulers[0], job.generation, languages=pair, name=_name(models[0]))
    return build_translator(model, title=f"Translate with {model.name}", subtitle=f"{_engines(models)}.")


def _responder(inference: Loaded[Any], scheduler: Scheduler, server: ServerConfig) -> ChatModel:
    from onmt_llm.chat.model import ChatModel

    return ChatModel(
        scheduler,
        inference.job.generation,
        max_context_length=server.max_context_length,
        template=inference.job.inference.template,
        name=_name(inference),
    )


def _name(inference: Loaded[Any]) -> str:
    return Path(inference.job.inference.model[0]).name


def _engines(models: Sequence[Loaded[Any]]) -> str:
    modes = [model_mode(inference.job.inference.model[0]) for inference in models]
    return f"Runs on {' and '.join({'py': 'PyTorch', 'ct2': 'CTranslate2'}[mode] for mode in dict.fromkeys(modes))}"


if __name__ == "__main__":
    raise SystemExit(main())
