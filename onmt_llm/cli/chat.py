"""`onmt_llm_chat` (also `python chatbot/chatbot.py`): chat with a model in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmt_llm.cli.inference import load_inference_config, model_mode, open_configured_engine
from onmt_llm.cli.outputs import Paths
from onmt_llm.cli.run import CheckedJob, run_job
from onmt_llm.config.chat import ChatConfig
from onmt_llm.config.loading.load import Loaded


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(CheckedJob("onmt_llm_chat", lambda loaded: Paths()), _chat, argv)


def _chat(loaded: Loaded[Any]) -> int:
    config: ChatConfig = loaded.job
    inference = load_inference_config(config.answering)
    # find out that the page cannot be served before spending minutes on loading a model
    from onmt_llm.chat.app import build_app, check_server, launch
    from onmt_llm.generate.session import ChatSession

    server = config.server
    check_server(server.server_name, server.server_port)
    session = ChatSession(
        open_configured_engine(inference),
        inference.job.generation,
        max_context_length=server.max_context_length,
        template=inference.job.inference.template,
    )
    app = build_app(session, **_headings(inference.job.inference.model[0], server.max_context_length))
    launch(app, server_name=server.server_name, server_port=server.server_port)
    return 0


def _headings(model: str, context: int) -> dict[str, str]:
    engine = {"py": "PyTorch", "ct2": "CTranslate2"}[model_mode(model)]
    return {
        "title": f"Chat with {Path(model).name}",
        "subtitle": f"Runs on {engine}, with a context of at most {context:,} tokens.",
    }


if __name__ == "__main__":
    raise SystemExit(main())
