"""`onmt_llm_chat` (also `python chatbot/chatbot.py`): talk to a model in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.run import run
from onmt_llm.cli.translate import open_from
from onmt_llm.config.load import Loaded, load
from onmt_llm.config.render import print_config
from onmt_llm.config.section import Section
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger, setup_logging

Mode = Literal["py", "ct2"]


class ChatConfig(Section):
    """The page, and the model behind it."""

    inference_config_file: str | None = None
    """Translate YAML: model, template and how answers are searched for or sampled."""
    inference_mode: Mode = "py"
    """Kind of the model: `py` = a checkpoint, `ct2` = a CTranslate2 release."""
    max_context_length: int = Field(4096, ge=2)
    """Tokens that prompt and answer may have together; the oldest rounds are left out beyond it."""
    server_port: int = Field(6006, ge=1, le=65535)
    """Port of the page."""
    server_name: str = "127.0.0.1"
    """Address of the page; any other than this machine's own lets others in."""


class ChatJob(Section):
    """Serve a chat page for one model."""

    chat: ChatConfig = ChatConfig()


def main(argv: Sequence[str] | None = None) -> int:
    return run(_chat, argv)


def _chat(argv: Sequence[str]) -> int:
    loaded = load(ChatJob, argv, prog="onmt_llm_chat")
    if loaded.switches["print_config"]:
        print(print_config(loaded))
        return 0
    setup_logging()
    options = loaded.job.chat
    inference = load_inference_config(options.inference_config_file, options.inference_mode)
    # a page that cannot be served should say so before minutes are spent on loading a model
    from chatbot.app import build_app, check_server, launch
    from chatbot.responder import EngineResponder

    check_server(options.server_name, options.server_port)
    engine = open_from(inference)
    responder = EngineResponder(
        engine,
        inference.job.generation,
        max_context_length=options.max_context_length,
        template=inference.job.inference.template,
    )
    app = build_app(responder, **_headings(inference.job.inference.model, options))
    launch(app, server_name=options.server_name, server_port=options.server_port)
    return 0


def load_inference_config(path: str | None, mode: Mode) -> Loaded[Any]:
    """Read a translate YAML (`translate_opts_py.yaml`, `translate_opts_ct2.yaml`) and hold its model against `mode`.

    Raises:
        ConfigError: The file is missing or wrong, names no model, or names a model of the other kind.
        CheckpointError: The model is an incomplete release.
    """
    if not path:
        raise ConfigError(
            "'inference_config_file' must be given, but is not.", hint="-inference_config_file translate_opts_py.yaml"
        )
    loaded = load_job("onmt_llm_translate", ["-config", path], prog="inference_config_file")
    for note in loaded.notes:
        logger.info(note)
    model = loaded.job.inference.model
    if not model:
        raise ConfigError(f"'model' must name a checkpoint or a release, but {path} does not set it.")
    from onmt_llm.generate.engine import find_release

    found: Mode = "ct2" if find_release(model) else "py"
    if found != mode:
        kinds = {"py": "a checkpoint", "ct2": "a CTranslate2 release"}
        raise ConfigError(
            f"With inference_mode {mode} the model must be {kinds[mode]}, "
            f"but '{model}'{loaded.origin('model')} is not one.",
            hint=f"-inference_mode {found}, or another model",
        )
    return loaded


def _headings(model: str, options: ChatConfig) -> dict[str, str]:
    engine = {"py": "PyTorch", "ct2": "CTranslate2"}[options.inference_mode]
    return {
        "title": f"Chat with {Path(model).name}",
        "subtitle": f"Answered by {engine}, from at most {options.max_context_length:,} tokens of conversation.",
    }


if __name__ == "__main__":
    raise SystemExit(main())
