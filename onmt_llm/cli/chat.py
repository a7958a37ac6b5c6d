"""`onmt_llm_chat` (also `python chatbot/chatbot.py`): chat with a model in the browser."""

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

if TYPE_CHECKING:
    from onmt_llm.chat.model import ChatModel


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(CheckedJob("onmt_llm_chat", lambda loaded: Paths()), _chat, argv)


def _chat(loaded: Loaded[Any]) -> int:
    config: ChatConfig = loaded.job
    server = config.server
    models = [load_inference_config(config.answering)]
    if server.compare_model:
        other = {"model": server.compare_model, "inference_mode": None}
        models.append(load_inference_config(config.answering.model_copy(update=other)))
    # find out that the page cannot be served before spending minutes on loading a model
    from onmt_llm.chat.launch import check_server, launch, read_users
    from onmt_llm.chat.page import build_app

    users = read_users(server.users_file)
    check_server(server.server_name, server.server_port, has_password=bool(users))
    with ExitStack() as opened:
        responders = [_open(inference, server, opened) for inference in models]
        names = [responder.name for responder in responders]
        title = f"Chat with {names[0]}" if len(names) == 1 else f"{names[0]} and {names[1]}"
        subtitle = _subtitle([inference.job.inference.model[0] for inference in models], server.max_context_length)
        app = build_app(responders, title=title, subtitle=subtitle, system=server.system_prompt)
        launch(app, server_name=server.server_name, server_port=server.server_port, users=users)
    return 0


def _open(inference: Loaded[Any], server: ServerConfig, opened: ExitStack) -> ChatModel:
    """The model of a configuration, with a scheduler that is closed with `opened`."""
    from onmt_llm.chat.model import ChatModel
    from onmt_llm.generate.scheduling.scheduler import Scheduler

    scheduler = Scheduler(open_configured_engine(inference), max_queue=server.max_queue)
    opened.callback(scheduler.close, drain=False)
    return ChatModel(
        scheduler,
        inference.job.generation,
        max_context_length=server.max_context_length,
        template=inference.job.inference.template,
        name=Path(inference.job.inference.model[0]).name,
    )


def _subtitle(models: Sequence[str], context: int) -> str:
    engines = [{"py": "PyTorch", "ct2": "CTranslate2"}[model_mode(model)] for model in models]
    return f"Runs on {' and '.join(dict.fromkeys(engines))}, with a context of at most {context:,} tokens."


if __name__ == "__main__":
    raise SystemExit(main())
